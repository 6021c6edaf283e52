"""Every error message of the packages, read from their source without running it.

In: a checkout. Out: what each error says that is made anywhere, with ``…`` for what is known only
then. Texts are followed through constants, local variables, conditions and functions. A function
that makes an error in words it is given counts once for each of its calls.
"""

import ast
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple, TypeVar

HOLE = "…"
_PACKAGES = ("cache_format", "stages", "pipeline")
_MADE = re.compile(r"\w*(Error|Exception)|BadParameter|Problem|problems\.append")
_MOST_VARIANTS = 12
"""Of one text. Where it has more, what they differ in is a hole."""
_MOST_HOPS = 5
"""From names to what they were assigned, and from calls to what they return."""
_MOST_CALLERS = 2
_WORD = re.compile(r"[^\W\d_]{2}")
_TEXT = re.compile(r"(str|NextStep|object)( \| None)?")

_T = TypeVar("_T")
_Function = tuple[str, ast.FunctionDef]
"""Its module, and itself."""


class Message(NamedTuple):
    """What a user may read."""

    module: str
    line: int
    error: str
    """The name of its class."""
    text: str
    next_step: str
    """What to do, where the error keeps it apart; empty otherwise."""


class _Scope(NamedTuple):
    """Where an expression is evaluated."""

    module: str
    functions: tuple[ast.FunctionDef, ...] = ()
    """The innermost last."""
    bound: Mapping[str, list[str]] = {}
    """Texts of the parameters of the innermost."""
    hops: int = 0


class Source:
    """The packages, parsed."""

    def __init__(self, root: Path) -> None:
        self._values: dict[str, dict[str, ast.expr]] = defaultdict(dict)
        self._functions: dict[str, dict[str, ast.FunctionDef]] = defaultdict(dict)
        self._calls: dict[str, list[tuple[_Scope, ast.Call]]] = defaultdict(list)
        self.error_classes: set[str] = set()
        """Without those of one module alone, and without signals to stop, which are no errors."""
        for path in sorted(file for name in _PACKAGES for file in (root / name).rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            self._add(ast.parse(path.read_text(encoding="utf-8")), _Scope(module), "")

    def _add(self, parent: ast.AST, scope: _Scope, owner: str) -> None:
        for node in ast.iter_child_nodes(parent):
            inner, name = scope, owner
            match node:
                case ast.FunctionDef():
                    if node.name == "__init__":
                        node.name = owner  # it is called by that name
                    self._functions[node.name][scope.module] = node
                    inner = scope._replace(functions=(*scope.functions, node))
                case ast.ClassDef():
                    name = node.name
                    if re.fullmatch(r"[A-Z]\w*Error", name):
                        self.error_classes.add(name)
                case ast.Call():
                    called = _name(node.func).replace("__init__", f"{owner}.super")
                    if ast.unparse(node.func) == "problems.append":
                        called = "problems.append"
                    self._calls[called].append((scope, node))
            if not scope.functions and not owner:
                for target, value in _assigned(node):
                    if target.isupper():
                        self._values[target].setdefault(scope.module, value)
            self._add(node, inner, name)

    def messages(self) -> list[Message]:
        """In the order of modules and lines. One made of nothing but another error's is a hole."""
        made = filter(_MADE.fullmatch, list(self._calls))
        return sorted(
            {
                Message(scope.module, call.lineno, error, text or HOLE, next_step)
                for error in made
                for scope, call in self._constructions(error)
                for called in self._callers(scope)
                for text, next_step in product(*self._said(error, call.args, called))
            }
        )

    def _constructions(self, error: str) -> list[tuple[_Scope, ast.Call]]:
        own_message = [] if error == "AdvisedError" else self._calls.get(f"{error}.super", [])
        return [(scope, call) for scope, call in own_message or self._calls[error] if call.args]

    def _said(self, error: str, args: list[ast.expr], scope: _Scope) -> Iterator[list[str]]:
        """Variants of the message and of the next step."""
        first = int(error == "Problem")  # after the path
        for index in (first, first + 1):
            yield self._texts(args[index], scope) if index < len(args) else [""]

    def _callers(self, scope: _Scope, num_callers: int = _MOST_CALLERS) -> Iterator[_Scope]:
        """The scope with what each call tells its function in words, or as it is without any."""
        told = []
        for function in scope.functions[-1:] if num_callers else ():
            for place, call in self._calls.get(function.name, ()):
                if self._function(call.func, place.module) == (scope.module, function):
                    for outer in self._callers(place, num_callers - 1):
                        bound = self._bound(function, call, outer)
                        if any(re.search(_WORD, text) for text in chain(*bound.values())):
                            told.append(scope._replace(bound=bound))
        yield from told or [scope]

    def _function(self, called: ast.expr, module: str) -> _Function | None:
        found = self._functions.get(_name(called), {})
        match called:
            case ast.Attribute(ast.Name("self" | "cls")):
                return _nearest(found, "_", module)
            case ast.Attribute(ast.Name(of)):
                named = (each for each in found if each.endswith(f".{of}"))
                return next(((each, found[each]) for each in named), None)
            case ast.Name(name):
                return _nearest(found, name, module)
        return None

    def _bound(
        self, function: ast.FunctionDef, call: ast.Call, scope: _Scope
    ) -> dict[str, list[str]]:
        parameters = [each for each in function.args.args if each.arg not in ("self", "cls")]
        given = {each.arg: value for each, value in zip(parameters, call.args, strict=False)}
        given |= {each.arg: each.value for each in call.keywords if each.arg}
        return {
            each.arg: self._texts(given[each.arg], scope) if each.arg in given else [HOLE]
            for each in (*parameters, *function.args.kwonlyargs)
            if _is_text(each.annotation)
        }

    def _texts(self, value: ast.expr, scope: _Scope) -> list[str]:
        """What an expression may be as text, each variant once."""
        found = list(dict.fromkeys(self._variants(value, scope)))
        return found if 0 < len(found) <= _MOST_VARIANTS else [HOLE]

    def _variants(self, value: ast.expr, scope: _Scope) -> Iterator[str]:
        match value:
            case ast.Constant(str() | int() as constant):
                yield str(constant)
            case ast.JoinedStr(parts):
                yield from self._joined(parts, scope)
            case ast.Call(ast.Attribute(attr="join"), [ast.List(parts)]):
                yield from self._joined(parts, scope, " ")
            case ast.BinOp(left, ast.Add(), right):
                yield from self._joined([left, right], scope)
            case ast.FormattedValue(inner, -1, None) | ast.NamedExpr(_, inner):
                yield from self._texts(inner, scope)
            case ast.FormattedValue(inner):
                yield from (text if text.isdigit() else HOLE for text in self._texts(inner, scope))
            case ast.IfExp(_, body, other):
                yield from (*self._texts(body, scope), *self._texts(other, scope))
            case ast.BoolOp(_, values) | ast.Dict(_, values):
                yield from chain.from_iterable(self._texts(each, scope) for each in values)
            case ast.Call(ast.Name("NextStep" | "str"), [text, *_]) | ast.Subscript(text):
                yield from self._texts(text, scope)
            case ast.Call(called):
                yield from self._returned(self._function(called, scope.module), value, scope)
            case ast.Name() | ast.Attribute():
                yield from self._named(value, scope)
            case _:
                yield HOLE

    def _joined(self, parts: list[ast.expr], scope: _Scope, gap: str = "") -> Iterator[str]:
        variants = [self._texts(part, scope) for part in parts]
        while math.prod(map(len, variants)) > _MOST_VARIANTS:
            variants[max(range(len(variants)), key=lambda index: len(variants[index]))] = [HOLE]
        for texts in product(*variants):
            yield re.sub(f"{HOLE}{HOLE}+", HOLE, gap.join(texts))

    def _returned(self, function: _Function | None, call: ast.Call, scope: _Scope) -> Iterator[str]:
        if function is None or scope.hops == _MOST_HOPS or not _is_text(function[1].returns):
            yield HOLE
            return
        bound = self._bound(function[1], call, scope)
        inner = _Scope(function[0], (function[1],), bound, scope.hops + 1)
        for node in ast.walk(function[1]):
            if isinstance(node, ast.Return) and node.value is not None:
                yield from self._texts(node.value, inner)

    def _named(self, used: ast.expr, scope: _Scope) -> Iterator[str]:
        name = _name(used)
        if name in scope.bound:
            yield from scope.bound[name]
            return
        if scope.hops == _MOST_HOPS:
            return
        scope = scope._replace(hops=scope.hops + 1)
        for function in reversed(scope.functions):
            parts = [node for node in ast.walk(function) if name in dict(_assigned(node))]
            loops = [node for node in parts if isinstance(node, ast.For) and used in ast.walk(node)]
            for node in loops[-1:] or (each for each in parts if not isinstance(each, ast.For)):
                yield from self._texts(dict(_assigned(node))[name], scope)
            if parts or name in {
                each.arg for each in ast.walk(function) if isinstance(each, ast.arg)
            }:
                return
        constant = _nearest(self._values.get(name, {}), name, scope.module)
        if constant is not None:
            yield from self._texts(constant[1], _Scope(constant[0], hops=scope.hops))


def has_words(text: str) -> bool:
    """Whether a message says anything by itself."""
    return re.search(r"[^\W\d_]{4}", re.sub(r"^[\w.]+: ", "", text)) is not None


def _name(called: ast.expr) -> str:
    match called:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
    return ""


def _nearest(found: Mapping[str, _T], name: str, module: str) -> tuple[str, _T] | None:
    """What a module calls by a name: its own, or that of another module unless it is private."""
    if module in found:
        return module, found[module]
    return None if name.startswith("_") else next(iter(found.items()), None)


def _is_text(annotation: ast.expr | None) -> bool:
    return annotation is not None and _TEXT.fullmatch(ast.unparse(annotation)) is not None


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.Assign([ast.Name(name)], value):
            yield name, value
        case ast.AnnAssign(ast.Name(name), _, value) | ast.NamedExpr(ast.Name(name), value):
            if value is not None:
                yield name, value
        case ast.For(ast.Name(name), ast.Tuple(elements)):
            yield name, ast.BoolOp(ast.Or(), list(_flat(elements)))


def _flat(elements: list[ast.expr]) -> Iterator[ast.expr]:
    for element in elements:
        match element:
            case ast.Starred(ast.Tuple(inner)):
                yield from _flat(inner)
            case _:
                yield element
