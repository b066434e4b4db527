"""The text codec: byte-identical round trips for any tree, readable layout, errors with the line."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilecc.diag import TileccError
from tilecc.ir.loc import Loc
from tilecc.ir.text import WIDTH, format_node, ir_node, parse_ir, print_ir


class Role(enum.Enum):
    LOADER = 0
    CONSUMER = "c"


@ir_node(positional=3)
class Leaf:
    name: str
    count: int = 0
    ratio: float = 1.0


@ir_node
class Branch:
    name: str
    role: Role
    items: tuple[Leaf, ...] = ()
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: Leaf | None = None
    sizes: tuple[int | str, ...] = ()
    flag: bool = False
    loc: Loc = Loc("", 0)


@ir_node
class Tree:
    IR_NAME: ClassVar[str] = "tree"
    IR_VERSION: ClassVar[int] = 7
    name: str
    branches: tuple[Branch, ...] = ()


texts = st.text(max_size=12)
leaves = st.builds(Leaf, texts, st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=True))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts, st.sampled_from(Role), leaves
)
values = st.recursive(
    scalars,
    lambda v: st.one_of(st.lists(v, max_size=4).map(tuple), st.dictionaries(texts, v, max_size=3)),
    max_leaves=8,
)
branches = st.builds(
    Branch,
    texts,
    st.sampled_from(Role),
    st.lists(leaves, max_size=6).map(tuple),
    st.dictionaries(texts, values, max_size=4),
    st.none() | leaves,
    st.lists(st.integers(0, 999) | texts, max_size=80).map(tuple),
    st.booleans(),
    st.builds(Loc, texts, st.integers(0, 999), texts),
)
trees = st.builds(Tree, texts, st.lists(branches, max_size=4).map(tuple))


@settings(max_examples=150, deadline=None)
@given(trees)
def test_round_trip_is_exact(tree: Tree) -> None:
    text = print_ir(tree)
    again = parse_ir(text, [Tree])
    assert again == tree
    assert print_ir(again) == text


@pytest.mark.parametrize("value", [True, 1, 1.0, -0.0, 0.0, math.inf, -math.inf, 5e-324, 0.1, -(10**30)])
def test_numbers_keep_type_and_sign(value: float) -> None:
    tree = Tree("t", (Branch("b", Role.LOADER, attrs={"v": value}),))
    back = parse_ir(print_ir(tree), [Tree]).branches[0].attrs["v"]
    assert type(back) is type(value) and back == value
    assert math.copysign(1, back) == math.copysign(1, value)


def test_nan_round_trips() -> None:
    text = print_ir(Tree("t", (Branch("b", Role.LOADER, attrs={"v": math.nan}),)))
    again = parse_ir(text, [Tree])
    assert math.isnan(again.branches[0].attrs["v"])
    assert print_ir(again) == text


def test_fields_equal_to_their_default_are_omitted_and_no_others() -> None:
    assert format_node(Leaf("a")) == 'Leaf("a")'
    assert format_node(Leaf("a", 3)) == 'Leaf("a", 3)'
    assert format_node(Leaf("a", 0, 2.0)) == 'Leaf("a", ratio=2.0)'
    # 1 == 1.0 == True, but they are not the same field value
    assert format_node(Leaf("a", 0, 1)) == 'Leaf("a", ratio=1)'
    assert format_node(Branch("b", Role.CONSUMER)) == 'Branch("b", Role.CONSUMER)'


def test_layout() -> None:
    tree = Tree(
        "t",
        (
            Branch("short", Role.LOADER, (Leaf("a", 1),)),
            Branch("long", Role.CONSUMER, tuple(Leaf("x" * 30, i) for i in range(4)), sizes=tuple(range(60))),
        ),
    )
    assert print_ir(tree) == LAYOUT
    assert max(map(len, LAYOUT.splitlines())) <= WIDTH


LAYOUT = """\
tilecc.tree 7
Tree(
  "t",
  branches=[
    Branch("short", Role.LOADER, items=[Leaf("a", 1)]),
    Branch(
      "long",
      Role.CONSUMER,
      items=[
        Leaf("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
        Leaf("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 1),
        Leaf("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 2),
        Leaf("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 3),
      ],
      sizes=[
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37,
        38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59,
      ],
    ),
  ],
)
"""  # noqa: E501


def test_comments_and_free_layout_are_read() -> None:
    text = 'tilecc.tree 7\n# a comment\nTree("t",\n branches=(Branch(name="b", role=Role.LOADER), ))  # end\n'
    assert parse_ir(text, [Tree]) == Tree("t", (Branch("b", Role.LOADER),))


HEAD = "tilecc.tree 7\n"


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("", 1, "first line"),
        ("tilecc.tree\n", 1, "first line"),
        ("tilecc.other 7\nTree()", 1, "this is tilecc.other, expected tilecc.tree"),
        (HEAD, None, ""),
        (HEAD + 'Tree(\n"t",\nbranches=[\n', 4, "never closed"),
        (HEAD + 'Tree(\n  "t",\n  branches=[Twig("x")])', 4, "unknown node Twig"),
        (HEAD + 'Tree("t",\n  leaves=[])', 3, "no field 'leaves'"),
        (HEAD + 'Tree("t",\n  name="u")', 3, "given twice"),
        (HEAD + "Tree()", 2, "lacks field 'name'"),
        (HEAD + 'Tree("t", [], 3)', 2, "2 fields, 3 values"),
        (HEAD + "Tree(\n  3)", 3, "must be str, found 3"),
        (HEAD + 'Tree("t", branches=[\n  Leaf("a")])', 2, "must be tuple["),
        (HEAD + 'Tree("t", branches=[\n  Branch("b", Role.NOBODY)])', 3, "unknown name Role.NOBODY"),
        (HEAD + 'Tree("t", branches=[\n  Branch("b", Role.LOADER, flag=1)])', 3, "must be bool, found 1"),
        (
            HEAD + 'Tree("t", branches=[\n  Branch("b", Role.LOADER, attrs={"a": 1, "a": 2})])',
            3,
            "given twice",
        ),
        (HEAD + 'Tree("t", branches=[\n  Branch("b", Role.LOADER, attrs={3: 1})])', 3, "must be a string"),
        (HEAD + "Tree(\n  print('x'))", 3, "unknown node print"),
        (HEAD + "Tree(\n  'a' + 'b')", 3, "is not IR text"),
        (HEAD + "Tree(\n  **{'name': 'x'})", 3, "no field '**'"),
        (HEAD + 'Leaf("a")', 2, "expected one Tree"),
        (HEAD + "Tree(" + "[" * 5000 + "]" * 5000 + ")", None, ""),
        (HEAD + 'Tree("\0")', None, ""),
    ],
)
def test_malformed_text_is_refused_with_its_line(text: str, line: int | None, part: str) -> None:
    with pytest.raises(TileccError) as caught:
        parse_ir(text, [Tree], "ir/tree.txt")
    (found,) = caught.value.diagnostics
    assert found.code == "TC0210"
    assert found.span is not None and found.span.file == "ir/tree.txt"
    if line is not None:
        assert found.span.line == line
    assert part in found.message


def test_another_version_is_refused_with_both_numbers() -> None:
    with pytest.raises(TileccError) as caught:
        parse_ir('tilecc.tree 6\nTree("t")', [Tree])
    (found,) = caught.value.diagnostics
    assert found.code == "TC0211"
    assert "tree 6" in found.message and "tree 7" in found.message


def test_values_without_text_form_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="list"):
        print_ir(Tree("t", (Branch("b", Role.LOADER, attrs={"v": [1]}),)))
    with pytest.raises(TypeError, match="dict key 1"):
        print_ir(Tree("t", (Branch("b", Role.LOADER, attrs={"v": {1: 2}}),)))


def test_nodes_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Leaf("a").name = "b"  # type: ignore[misc]


@ir_node(positional=1)
class Nest:
    """A node that holds nodes of its own class."""

    name: str
    children: tuple[Nest, ...] = ()


def test_a_node_may_hold_nodes_of_its_own_class() -> None:
    nest = Nest("root", (Nest("left", (Nest("leaf"),)), Nest("right")))
    assert parse_ir(print_ir(nest), [Nest]) == nest
