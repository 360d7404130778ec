"""What no source file may do: run code that comes as data. Names are followed through imports and aliases."""

from __future__ import annotations

import ast
from collections.abc import Iterator

# Modules that execute what they read, or read it by way of pickle.
MODULES = {
    *(
        "pickle",
        "cPickle",
        "_pickle",
        "pickletools",
        "marshal",
        "shelve",
        "dill",
        "cloudpickle",
        "joblib",
        "jsonpickle",
    ),
    *("yaml", "ruamel", "imp", "runpy", "code", "codeop", "pandas", "multiprocessing.connection", "torch.package"),
}
CALLS = {
    *("eval", "exec", "__import__", "builtins.eval", "builtins.exec", "builtins.__import__", "os.system", "os.popen"),
    *("importlib.import_module", "pty.spawn", "torch.jit.load", "torch.hub.load", "torch.export.load"),
    *("torch.hub.load_state_dict_from_url", "torch.utils.model_zoo.load_url", "torch.serialization._legacy_load"),
    *("numpy.lib.format.read_array", "xml.etree.ElementTree.fromstring", "subprocess.getoutput"),
    "subprocess.getstatusoutput",
}
# Functions that are harmless with the right argument: (position, keyword, what it must be, whether it may be absent).
ARGUMENTS = {
    "torch.load": (None, "weights_only", "True", False),
    "numpy.load": (2, "allow_pickle", "False", True),
    "numpy.save": (2, "allow_pickle", "False", False),
}
KEYWORDS = {"allow_pickle": "False", "shell": "False", "weights_only": "True"}
BY_NAME = {"getattr", "operator.attrgetter", "operator.methodcaller"}


def violations(source: str, allowed: frozenset[str] = frozenset()) -> Iterator[str]:
    """Every offence in a module's text, with its line. ``allowed``: dotted names that this file may call."""
    tree = ast.parse(source)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                yield from _module(node, alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from _module(node, node.module or "")
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = full
                yield from _module(node, full)
                if full in CALLS - allowed:
                    yield f"line {node.lineno}: import of {full}"
    # A second name for something, x = torch.load, is followed too, to any depth that is written in order.
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and (full := _dotted(node.value, names)):
            for target in node.targets:
                if isinstance(target, ast.Name) and (full in CALLS or full in ARGUMENTS):
                    names[target.id] = full
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _call(node, names, allowed)
        full = _dotted(node, names) if isinstance(node, ast.Attribute | ast.Name) else None
        if full in CALLS - allowed:
            yield f"line {node.lineno}: {full}"


def _module(node: ast.stmt, name: str) -> Iterator[str]:
    if any(name == module or name.startswith(module + ".") for module in MODULES):
        yield f"line {node.lineno}: import of {name}"


def _call(node: ast.Call, names: dict[str, str], allowed: frozenset[str]) -> Iterator[str]:
    full = _dotted(node.func, names) or ast.unparse(node.func)
    options = {k.arg: ast.unparse(k.value) for k in node.keywords}
    for keyword, wanted in KEYWORDS.items():
        if options.get(keyword, wanted) != wanted:
            yield f"line {node.lineno}: {full}({keyword}={options[keyword]})"
    if full in ARGUMENTS:
        position, keyword, wanted, absent = ARGUMENTS[full]
        given = options.get(keyword)
        if given is None and position is not None and len(node.args) > position:
            given = ast.unparse(node.args[position])
        # **options could hold anything.
        if None in options or not (given == wanted or (given is None and absent)):
            yield f"line {node.lineno}: {full} without {keyword}={wanted}"
    if full in BY_NAME:
        words = {w for a in node.args if isinstance(a, ast.Constant) for w in str(a.value).split(".")}
        if words & ({"load", "system", "popen", "eval", "exec", "__import__", "loads"} | MODULES):
            yield f"line {node.lineno}: {full} of a name that executes"


def _dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    """``torch.load`` of any expression that means it, None for what is not a dotted name."""
    if isinstance(node, ast.Name):
        full = names.get(node.id, node.id)
    elif isinstance(node, ast.Attribute) and (base := _dotted(node.value, names)):
        full = f"{base}.{node.attr}"
    else:
        return None
    return "numpy" + full[2:] if full == "np" or full.startswith("np.") else full
