"""What is where: imports read from the sources, and the tree that the README draws."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "atp_cpp"


def modules(package=PACKAGE):
    """Dotted name -> path of every module, llama.cpp's own left out; the compiled one has None."""
    found = {"atp_cpp._core": None}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if "llama_cpp" not in parts:
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports_of(path, names):
    """Modules of `names` that a file imports: also inside functions, and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write imports from atp_cpp on"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in names:
                    found.add(full)
                elif node.module in names:
                    found.add(node.module)
    return found


def graph(package=PACKAGE):
    """Dotted name -> the modules that it imports."""
    names = modules(package)
    return {name: imports_of(path, names) if path else set() for name, path in names.items()}


def circles(edges):
    """Groups of modules that import each other, each sorted."""
    number, low, stack, found = {}, {}, [], []

    def visit(name):
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in edges[name]:
            if other not in number:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in edges[name]:
                found.append(sorted(group))

    for name in edges:
        if name not in number:
            visit(name)
    return found


def step_of(name, ladder):
    """The step of a module: that of the longest entry that it is or lies in; None without one."""
    fits = [
        (len(entry), step)
        for step, entries in enumerate(ladder)
        for entry in entries
        if name == f"atp_cpp.{entry}" or name.startswith(f"atp_cpp.{entry}.")
    ]
    return max(fits)[1] if fits else None


_ENTRY = re.compile(r"^(?P<indent> *)(?P<name>[\w.-]+)/(?: |$)")


def drawn_folders(text, heading="## What is where"):
    """The folders of the tree in a README, as paths: names that end with / in its first code block.

    A folder lies in the last one above it that is indented less.
    """
    block = text.split(heading, 1)[1].split("```", 2)[1]
    folders, above = set(), []  # (indent, path)
    for line in block.splitlines()[1:]:
        if (match := _ENTRY.match(line)) is None:
            continue
        indent = len(match["indent"])
        while above and above[-1][0] >= indent:
            above.pop()
        path = f"{above[-1][1]}/{match['name']}" if above else match["name"]
        above.append((indent, path))
        folders.add(path)
    return folders
