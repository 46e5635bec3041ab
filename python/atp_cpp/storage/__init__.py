"""Files that are whole after any end of the process: replaced, locked, measured."""
