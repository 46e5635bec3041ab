"""The stub _core.pyi says what the module has: the same names, parameters and defaults."""

import ast
import math
from pathlib import Path

import pytest

import atp_cpp
from atp_cpp import _core

STUB = Path(atp_cpp.__file__).with_name("_core.pyi")


def stub_tree():
    return ast.parse(STUB.read_text(encoding="utf-8"))


def public(names):
    return {name for name in names if not name.startswith("_")}


def members_of(node):
    return {m.name: m for m in node.body if isinstance(m, ast.FunctionDef)}


def stub_functions():
    """(where, stub node, real object) of every function, method and constructor."""
    for node in stub_tree().body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node, getattr(_core, node.name)
        if isinstance(node, ast.ClassDef):
            for name, member in members_of(node).items():
                if not is_property(member):
                    yield f"{node.name}.{name}", member, getattr(getattr(_core, node.name), name)


def is_property(node):
    return any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)


def signature(node):
    """([(name, default or None)] positional, [...] keyword-only), defaults as values."""
    args = [a.arg for a in node.args.args if a.arg != "self"]
    defaults = [None] * (len(args) - len(node.args.defaults)) + node.args.defaults
    keywords = [
        (a.arg, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    ]
    return list(zip(args, defaults, strict=True)), keywords


def same_default(stub, real):
    if stub is None or real is None:
        return stub is real
    a, b = ast.literal_eval(stub), ast.literal_eval(real)
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-6)  # the engine's defaults are float32
    return a == b and type(a) is type(b)


def test_same_names_in_the_module():
    stubbed = set()
    for node in stub_tree().body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            stubbed.add(node.name)
        if isinstance(node, ast.AnnAssign):
            stubbed.add(node.target.id)
    in_test_builds = {"add_rpc_device"}
    assert public(stubbed) == public(vars(_core)) - in_test_builds
    assert "__version__" in stubbed
    assert isinstance(_core.__version__, str)


def test_same_members_in_every_class():
    for node in stub_tree().body:
        if isinstance(node, ast.ClassDef):
            real = getattr(_core, node.name)
            assert public(members_of(node)) == public(vars(real)), node.name
            for name, member in members_of(node).items():
                if name != "__init__":
                    assert is_property(member) == isinstance(vars(real)[name], property), name


def test_same_bases():
    for node in stub_tree().body:
        if isinstance(node, ast.ClassDef) and node.bases:
            base = getattr(_core, node.name).__mro__[1].__name__
            assert base == node.bases[0].id


@pytest.mark.parametrize(
    ("node", "real"), [pytest.param(n, r, id=w) for w, n, r in stub_functions()]
)
def test_same_parameters(node, real):
    line = real.__doc__.split("\n")[0]  # pybind11 writes the signature there
    (parsed,) = ast.parse(f"def {line}: ...").body
    for stub, module in zip(signature(node), signature(parsed), strict=True):
        assert [name for name, _ in stub] == [name for name, _ in module]
        for (name, a), (_, b) in zip(stub, module, strict=True):
            assert same_default(a, b), name
