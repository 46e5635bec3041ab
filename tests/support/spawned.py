"""A process that is spawned with a CaptionBatch. A module of its own: the process imports it."""

import multiprocessing
import os


def serve(batch, connection):
    """A worker of a pool: unpickled, called for each batch, killed or not."""
    while (work := connection.recv()) is not None:
        connection.send((os.getpid(), batch(work)))
    batch.close()


class Worker:
    """A process that was spawned with a CaptionBatch."""

    def __init__(self, batch):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(batch, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def end(self):
        self.connection.send(None)
        self.process.join(60)
        assert self.process.exitcode == 0
