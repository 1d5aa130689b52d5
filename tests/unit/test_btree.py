"""The B-tree against a dict: in shapes that real keys give, and in ones that only malice does."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from vzarr import btree, node
from vzarr.btree import Tree
from vzarr.errors import CorruptError
from vzarr.format import Digest, TreeRef, blob_measure, key_hash, node_digest
from vzarr.node import Node, decode_node, decode_values, encode_node

Model = dict[bytes, bytes]


class Nodes:
    """Nodes in a dict; what is loaded and saved is counted, and checked against its digest."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.loads = 0
        self.saves = 0

    def load(self, digest: bytes) -> Node:
        self.loads += 1
        try:
            data = self.data[digest]
        except KeyError:
            raise CorruptError(f"node {digest.hex()} is missing") from None
        assert node_digest(data) == digest
        return decode_node(data)

    def save(self, node: Node) -> bytes:
        self.saves += 1
        node_bytes = encode_node(node.level, node.keys, node.values)
        digest = node_digest(node_bytes)
        self.data[digest] = node_bytes
        return digest

    @contextlib.contextmanager
    def counted(self) -> Iterator[Nodes]:
        self.loads = self.saves = 0
        yield self


def measure(value: bytes) -> tuple[int, int]:
    return 1, len(value)


def new_tree() -> tuple[Nodes, Tree]:
    nodes = Nodes()
    return nodes, Tree(nodes, measure)


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────


def _one_in(n: int) -> Callable[[bytes], int]:
    """A hash with which one key in n, not in 32, ends its node, on each level for itself."""

    def hashed(key: bytes) -> int:
        bits = key_hash(key)
        return sum(31 << 5 * level for level in range(12) if (bits >> 5 * level) % 32 % n)

    return hashed


@dataclass(frozen=True)
class Shape:
    """How large nodes may be, and how keys are hashed."""

    name: str
    max_entries: int
    hashed: Callable[[bytes], int]

    def __repr__(self) -> str:
        return self.name

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(btree, "MAX_ENTRIES", self.max_entries)
            patch.setattr(node, "MAX_ENTRIES", self.max_entries)
            patch.setattr(btree, "key_hash", self.hashed)
            yield


SHAPES = [
    Shape("natural", 1024, key_hash),
    Shape("deep", 1024, _one_in(2)),
    Shape("capped", 3, _one_in(4)),
    Shape("every key ends its node", 4, lambda _: 0),
    Shape("no key ends its node", 3, lambda _: 2**64 - 1),
    Shape("one level only", 5, lambda _: 31),
    Shape("all but one level", 2, lambda _: 2**64 - 1 - 31),
]
shapes = st.sampled_from(SHAPES)

# Few keys, so that edits meet; few values, so that neighbours and versions have equal ones.
fixed_keys = st.integers(0, 60).map(lambda number: number.to_bytes(2, "big"))
variable_keys = st.binary(max_size=3) | st.text("ab", max_size=5).map(str.encode)
keys = st.one_of(fixed_keys, variable_keys)
values = st.one_of(st.just(b"x" * 4), st.binary(max_size=3))
bounds = st.tuples(keys, st.none() | keys)


def _drawn(seed: int, size: int, values: tuple[Any, ...]) -> dict[bytes, Any]:
    """Hypothesis alone makes small maps."""
    rng = random.Random(seed)
    pool = [number.to_bytes(2, "big") for number in range(61)]
    pool += [bytes(rng.choices(b"ab", k=rng.randrange(9))) for _ in range(60)]
    return {rng.choice(pool): rng.choice(values) for _ in range(size)}


def _maps(values: st.SearchStrategy[Any], *some: Any) -> st.SearchStrategy[dict[bytes, Any]]:
    large = st.builds(_drawn, st.integers(0, 2**32), st.integers(0, 150), st.just(some))
    return st.one_of(large, st.dictionaries(keys, values, max_size=30))


models = _maps(values, b"", b"x" * 4, b"abc")
edits = _maps(st.none() | values, b"", b"x" * 4, b"abc", None, None)
relaxed = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def edited(model: Mapping[bytes, bytes], edits: Mapping[bytes, bytes | None]) -> Model:
    merged = {**model, **edits}
    return {key: value for key, value in merged.items() if value is not None}


def by_definition(model: Model) -> tuple[bytes, int, int] | None:
    """The root that a map has: digest and sums, from the definition alone."""
    entries = [(key, value, 1, len(value)) for key, value in sorted(model.items())]
    for level in range(32):
        nodes, node = [], []
        for entry in entries:
            node.append(entry)
            ends = level < 12 and (btree.key_hash(entry[0]) >> 5 * level) % 32 == 0
            if ends or len(node) == btree.MAX_ENTRIES or entry is entries[-1]:
                fields: list[int | bytes] = [level, len(node)]
                for items in ([entry[0] for entry in node], [entry[1] for entry in node]):
                    ends_at = [len(b"".join(items[: i + 1])) for i in range(len(items))]
                    width = ends_at[0]
                    is_fixed = ends_at == [width * (i + 1) for i in range(len(items))]
                    fields.append(width if is_fixed else struct.pack(f"<{len(items)}I", *ends_at))
                    fields.append(b"".join(items))
                count, nbytes = sum(entry[2] for entry in node), sum(entry[3] for entry in node)
                nodes.append((entry[0], node_digest(msgpack.packb(fields)), count, nbytes))
                node = []
        if len(nodes) < 2:
            return nodes[0][1:] if nodes else None
        entries = [
            (key, digest + struct.pack("<QQ", count, nbytes), count, nbytes)
            for key, digest, count, nbytes in nodes
        ]
    raise AssertionError("no end to the levels")


def difference(a: Model, b: Model) -> dict[bytes, tuple[bytes | None, bytes | None]]:
    return {key: (a.get(key), b.get(key)) for key in sorted(a | b) if a.get(key) != b.get(key)}


def within(key: bytes, start: bytes, stop: bytes | None) -> bool:
    return start <= key and (stop is None or key < stop)


def verify(tree: Tree, root: TreeRef | None, model: Model) -> None:
    """Assert that a tree is sound and holds just this."""
    tree.check(root)
    assert list(tree.scan(root)) == sorted(model.items())
    size = (0, 0) if root is None else (root.count, root.nbytes)
    assert size == (len(model), sum(map(len, model.values())))


def reachable(tree: Tree, root: TreeRef | None) -> set[bytes]:
    return {digest for digest, _ in tree.walk(root)}


# ── one tree for each content ────────────────────────────────────────────────────────────────────


@relaxed
@given(shapes, st.lists(edits, max_size=8))
def test_history_leaves_no_trace(shape: Shape, history: list[dict[bytes, bytes | None]]) -> None:
    with shape.in_force():
        nodes, tree = new_tree()
        root, model = None, {}
        for step in history:
            before, had = root, set(nodes.data)
            with nodes.counted():
                root, model = tree.apply(root, sorted(step.items())), edited(model, step)
            verify(tree, root, model)
            # Each node that was saved is new, saved once, and part of the tree.
            fresh = set(nodes.data) - had
            assert fresh <= reachable(tree, root) - reachable(tree, before)
            assert nodes.saves <= len(reachable(tree, root) - reachable(tree, before))

            assert by_definition(model) == (None if root is None else astuple(root))
            built_nodes, builder = new_tree()
            assert builder.build(sorted(model.items())) == root
            assert set(built_nodes.data) == reachable(tree, root)
            assert builder.apply(None, sorted(model.items())) == root


def test_order_and_size_of_batches_leave_no_trace() -> None:
    rng = random.Random(7)
    _, tree = new_tree()
    model = {rng.randbytes(8): rng.randbytes(36) for _ in range(5000)}
    extra = {rng.randbytes(8): rng.randbytes(36) for _ in range(500)}
    expected = tree.build(sorted(model.items()))
    tree.check(expected)
    for batch in (37, 1000, 5500):
        todo: list[tuple[bytes, bytes | None]] = [*model.items(), *extra.items()]
        rng.shuffle(todo)
        root = None
        for start in range(0, len(todo), batch):
            root = tree.apply(root, sorted(todo[start : start + batch]))
        root = tree.apply(root, [(key, None) for key in sorted(extra)])
        assert root == expected


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_delete_down_to_nothing(shape: Shape) -> None:
    rng = random.Random(3)
    with shape.in_force():
        _, tree = new_tree()
        model = {bytes([n]): b"v" * (n % 3) for n in range(100)}
        root = tree.build(sorted(model.items()))
        while model:
            verify(tree, root, model)
            doomed = sorted(rng.sample(sorted(model), min(len(model), rng.randrange(1, 9))))
            root = tree.apply(root, [(key, None) for key in doomed])
            model = {key: value for key, value in model.items() if key not in doomed}
            assert root == new_tree()[1].build(sorted(model.items()))
        assert root is None


def test_empty_tree() -> None:
    nodes, tree = new_tree()
    assert tree.build([]) is None
    assert tree.apply(None, []) is None
    assert tree.apply(None, [(b"a", None)]) is None
    assert tree.get(None, b"a") is None
    assert tree.first(None, b"") is None
    assert tree.sums(None) == (0, 0)
    assert list(tree.scan(None)) == list(tree.walk(None)) == list(tree.diff(None, None)) == []
    assert tree.merge(None, None, None, _no_conflict) is None
    tree.check(None)
    assert nodes.data == {}


def test_empty_and_huge_keys_and_values() -> None:
    _, tree = new_tree()
    model = {b"": b"", b"k" * 100_000: b"v" * 300_000, b"\xff" * 70_000: b"", b"\0": b"w"}
    root = tree.apply(None, sorted(model.items()))
    verify(tree, root, model)
    assert all(tree.get(root, key) == value for key, value in model.items())
    only_empty = tree.apply(root, [(key, None) for key in sorted(model) if key])
    verify(tree, only_empty, {b"": b""})


def test_edits_must_be_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tree = new_tree()
    for wrong in ([(b"b", b""), (b"a", b"")], [(b"a", b""), (b"a", b"")]):
        with pytest.raises(AssertionError):
            tree.apply(None, wrong)
        for batch in (1, 2):
            monkeypatch.setattr(btree, "_BATCH", batch)
            with pytest.raises(AssertionError):
                tree.build(wrong)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


@relaxed
@given(shapes, models, st.lists(bounds, min_size=1, max_size=4))
def test_reads_are_those_of_a_dict(
    shape: Shape, model: Model, ranges: list[tuple[bytes, bytes | None]]
) -> None:
    with shape.in_force():
        _, tree = new_tree()
        root = tree.build(sorted(model.items()))
        for start, stop in ranges:
            expected = [item for item in sorted(model.items()) if within(item[0], start, stop)]
            assert list(tree.scan(root, start, stop)) == expected
            assert tree.sums(root, start, stop) == (
                len(expected),
                sum(len(value) for _, value in expected),
            )
            assert tree.get(root, start) == model.get(start)
            following = [item for item in sorted(model.items()) if item[0] >= start]
            assert tree.first(root, start) == (following[0] if following else None)
            for prefix in {start, start[:1], stop or b""}:
                assert list(tree.scan(root, prefix=prefix)) == [
                    item for item in sorted(model.items()) if item[0].startswith(prefix)
                ]
                assert list(tree.scan(root, start, stop, prefix=prefix)) == [
                    item for item in expected if item[0].startswith(prefix)
                ]


@relaxed
@given(shapes, models, edits, models, bounds)
@example(SHAPES[0], {b"a": b"x"}, {}, {b"b": b"x"}, (b"", None))
def test_diff_is_that_of_dicts(
    shape: Shape,
    model: Model,
    changes: dict[bytes, bytes | None],
    stranger: Model,
    limits: tuple[bytes, bytes | None],
) -> None:
    with shape.in_force():
        _, tree = new_tree()
        versions = [model, edited(model, changes), stranger, {}]
        roots = [tree.build(sorted(version.items())) for version in versions]
        for a, root_a in zip(versions, roots, strict=True):
            for b, root_b in zip(versions, roots, strict=True):
                expected = [(key, *pair) for key, pair in difference(a, b).items()]
                assert list(tree.diff(root_a, root_b)) == expected
                assert list(tree.diff(root_a, root_b, *limits)) == [
                    change for change in expected if within(change[0], *limits)
                ]


def test_reachable_passes_by_what_was_seen() -> None:
    nodes, tree = new_tree()
    first = tree.build((struct.pack(">I", n), b"v") for n in range(3000))
    second = tree.apply(first, [(struct.pack(">I", 1500), b"w")])
    seen: set[bytes] = set()
    walked = [digest for digest, _ in tree.reachable(first, seen)]
    assert len(walked) == len(set(walked))
    assert set(walked) == seen == reachable(tree, first)
    with nodes.counted():
        more = [digest for digest, _ in tree.reachable(second, seen)]
    assert nodes.loads == len(more)
    assert set(more) == reachable(tree, second) - reachable(tree, first)
    assert list(tree.reachable(second, seen)) == []
    levels = [node.level for _, node in tree.walk(first)]
    assert levels[0] == max(levels)


# ── costs ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def large() -> tuple[Nodes, Tree, TreeRef, list[bytes], int]:
    nodes, tree = new_tree()
    all_keys = [struct.pack(">I", 2 * n) for n in range(40_000)]
    root = tree.build((key, b"v" * 36) for key in all_keys)
    assert root is not None
    return nodes, tree, root, all_keys, nodes.load(root.digest).level + 1


def test_cost_of_one_edit(large: tuple[Nodes, Tree, TreeRef, list[bytes], int]) -> None:
    nodes, tree, root, all_keys, depth = large
    rng = random.Random(5)
    for key in rng.sample(all_keys, 300):
        with nodes.counted():
            tree.apply(root, [(key, b"new value")])
        assert nodes.loads == nodes.saves == depth
        with nodes.counted():
            tree.apply(root, [(key[:3] + bytes([key[3] + 1]), b"new entry")])
        # Once to see that the key is new.
        assert nodes.loads <= 2 * depth
        assert nodes.saves <= 2 * depth + 2
        with nodes.counted():
            tree.apply(root, [(key, None)])
        assert nodes.loads <= 2 * depth
        assert nodes.saves <= depth


@pytest.mark.parametrize("number", [2, 9, 64, 65])
def test_other_values_for_a_few_keys(
    large: tuple[Nodes, Tree, TreeRef, list[bytes], int], number: int
) -> None:
    nodes, tree, root, all_keys, depth = large
    rng = random.Random(number)
    content = dict.fromkeys(all_keys, b"v" * 36)
    for _ in range(5):
        keys = sorted(rng.sample(all_keys, number - 2) + all_keys[5:6] + all_keys[-1:])
        # Some of them have that value already, and one of the trees has a key more.
        edits = [(key, b"v" * rng.choice([36, 36, 5])) for key in dict.fromkeys(keys)]
        with nodes.counted():
            edited = tree.apply(root, edits)
        assert nodes.saves <= number * depth
        assert edited == tree.build(sorted((content | dict(edits)).items()))
        tree.check(edited)
        more = sorted([*edits, (rng.choice(all_keys) + b"\0", b"new")])
        assert tree.apply(root, more) == tree.build(sorted((content | dict(more)).items()))


def test_cost_of_appending(large: tuple[Nodes, Tree, TreeRef, list[bytes], int]) -> None:
    nodes, tree, root, _, depth = large
    grown: TreeRef | None = root
    saves = 0
    for n in range(500):
        with nodes.counted():
            grown = tree.apply(grown, [(struct.pack(">I", 2**31 + n), b"v" * 36)])
        assert nodes.loads <= depth + 1
        saves += nodes.saves
    assert saves <= 500 * (depth + 0.1)


def test_edits_that_change_nothing_save_nothing(
    large: tuple[Nodes, Tree, TreeRef, list[bytes], int],
) -> None:
    nodes, tree, root, all_keys, _ = large
    absent = [bytes([*key[:3], key[3] + 1]) for key in all_keys]
    with nodes.counted():
        assert tree.apply(root, []) is root
        for some in (all_keys[-1:], all_keys[5:6], all_keys[::7], all_keys):
            assert tree.apply(root, [(key, b"v" * 36) for key in some]) == root
        for some in (absent[-1:], absent[5:6], absent[::7]):
            assert tree.apply(root, [(key, None) for key in some]) == root
    assert nodes.saves == 0


def test_cost_of_reads(large: tuple[Nodes, Tree, TreeRef, list[bytes], int]) -> None:
    nodes, tree, root, all_keys, depth = large
    for key in all_keys[::997]:
        with nodes.counted():
            tree.get(root, key)
        assert nodes.loads <= depth
        with nodes.counted():
            tree.first(root, key + b"\0")
        assert nodes.loads <= depth + (depth - 1)
        with nodes.counted():
            tree.sums(root, key, all_keys[-1])
        assert nodes.loads <= 2 * depth
        with nodes.counted():
            assert len(list(tree.scan(root, key, key + b"\0"))) == 1
        assert nodes.loads <= 2 * depth
        changed = tree.apply(root, [(key, None)])
        with nodes.counted():
            assert len(list(tree.diff(root, changed))) == 1
        assert nodes.loads <= 4 * depth
        with nodes.counted():
            assert list(tree.diff(root, changed, key + b"\0")) == []
        assert nodes.loads <= 4 * depth


def test_diff_is_lazy(
    large: tuple[Nodes, Tree, TreeRef, list[bytes], int],
) -> None:
    nodes, tree, root, all_keys, depth = large
    single = tree.build([(all_keys[-1], b"other")])
    with nodes.counted():
        assert list(tree.diff(root, root)) == []
    assert nodes.loads == 0
    for other in (None, single):
        with nodes.counted():
            assert next(tree.diff(other, root)) == (all_keys[0], None, b"v" * 36)
        assert nodes.loads <= depth + 1


def test_merge_costs_the_smaller_side(
    large: tuple[Nodes, Tree, TreeRef, list[bytes], int],
) -> None:
    nodes, tree, root, all_keys, depth = large
    few = tree.apply(root, [(all_keys[77], b"few")])
    many = tree.apply(root, [(key, b"many") for key in all_keys[100::5]])
    for ours, theirs in ((few, many), (many, few)):
        with nodes.counted():
            merged = tree.merge(root, ours, theirs, _no_conflict)
        assert nodes.loads + nodes.saves <= 12 * depth
        assert tree.get(merged, all_keys[77]) == b"few"
        assert merged == tree.apply(many, [(all_keys[77], b"few")])


def test_merge_takes_whole_nodes_of_what_one_side_changed(
    large: tuple[Nodes, Tree, TreeRef, list[bytes], int],
) -> None:
    nodes, tree, root, all_keys, depth = large
    changed = all_keys[::200], all_keys[100::200]
    ours, theirs = (tree.apply(root, [(key, b"new") for key in keys]) for keys in changed)
    levels = [(node.level, set(node.keys)) for _, node in tree.walk(root)]
    inner = sum(level > 0 for level, _ in levels)
    both = sum(level == 0 and all(keys & set(side) for side in changed) for level, keys in levels)
    assert both < 100
    with nodes.counted():
        merged = tree.merge(root, ours, theirs, _no_conflict)
    # Of 400 leaves that changed, those alone that both sides did.
    assert nodes.loads <= 3 * (inner + both) + 2 * depth
    assert nodes.saves <= inner + both
    assert merged == tree.apply(ours, [(key, b"new") for key in changed[1]])


@pytest.mark.parametrize("many", ["inserted", "deleted", "before", "behind"])
def test_merge_costs_the_smaller_side_whatever_the_larger_did(
    large: tuple[Nodes, Tree, TreeRef, list[bytes], int], many: str
) -> None:
    nodes, tree, root, all_keys, depth = large
    edits: dict[str, list[tuple[bytes, bytes | None]]] = {
        "inserted": [(key[:3] + bytes([key[3] + 1]), b"many") for key in all_keys[1000::3]],
        "deleted": [(key, None) for key in all_keys[1000::3]],
        "before": [(b"\0" + key, b"many") for key in all_keys[::3]],
        "behind": [(b"\xf0" + key, b"many") for key in all_keys[::3]],
    }
    larger = tree.apply(root, edits[many])
    for key in (all_keys[77], all_keys[20_000], b"", b"\xef", b"\xff" * 5):
        few = tree.apply(root, [(key, b"few")])
        for ours, theirs in ((few, larger), (larger, few)):
            with nodes.counted():
                merged = tree.merge(root, ours, theirs, _no_conflict)
            assert nodes.loads + nodes.saves <= 8 * depth
            assert merged == tree.apply(larger, [(key, b"few")])


def test_measure_is_called_for_what_changes() -> None:
    measured: list[bytes] = []

    def noting(value: bytes) -> tuple[int, int]:
        measured.append(value)
        return 1, len(value)

    tree = Tree(Nodes(), noting)
    root = tree.build((struct.pack(">I", n), b"v%d" % n) for n in range(1000))
    measured.clear()
    changed = tree.apply(root, [(struct.pack(">I", 500), b"new value")])
    assert sorted(measured) == [b"new value", b"v500"]
    tree.check(changed)


# ── merging ──────────────────────────────────────────────────────────────────────────────────────


def _no_conflict(*_: bytes | None) -> bytes | None:
    raise AssertionError("nothing was in conflict")


@relaxed
@given(shapes, models, edits, edits, st.sampled_from(["ours", "theirs", "base", "none", "new"]))
def test_merge_is_that_of_dicts(
    shape: Shape,
    base: Model,
    our_edits: dict[bytes, bytes | None],
    their_edits: dict[bytes, bytes | None],
    taken: str,
) -> None:
    ours, theirs = edited(base, our_edits), edited(base, their_edits)
    expected: dict[bytes, bytes | None] = dict(base)
    conflicts = []
    for key in sorted(base | ours | theirs):
        before, mine, other = base.get(key), ours.get(key), theirs.get(key)
        choice = {"ours": mine, "theirs": other, "base": before, "none": None, "new": b"new"}
        if mine == before:
            expected[key] = other
        elif other in (before, mine):
            expected[key] = mine
        else:
            conflicts.append((key, before, mine, other))
            expected[key] = choice[taken]

    called = []

    def on_conflict(
        key: bytes, before: bytes | None, mine: bytes | None, other: bytes | None
    ) -> bytes | None:
        called.append((key, before, mine, other))
        choice = {"ours": mine, "theirs": other, "base": before, "none": None, "new": b"new"}
        return choice[taken]

    with shape.in_force():
        _, tree = new_tree()
        roots = [tree.build(sorted(model.items())) for model in (base, ours, theirs)]
        merged = tree.merge(*roots, on_conflict)
        assert called == conflicts
        verify(tree, merged, edited({}, expected))
        assert merged == tree.build(sorted(edited({}, expected).items()))


# ── all at once ──────────────────────────────────────────────────────────────────────────────────


class Versions(RuleBasedStateMachine):
    """Versions of a map that are edited, compared and merged, each beside a dict."""

    versions: Bundle[tuple[TreeRef | None, Model]] = Bundle("versions")

    @initialize(target=versions, shape=shapes, model=models)
    def begin(self, shape: Shape, model: Model) -> tuple[TreeRef | None, Model]:
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(shape.in_force())
        self.nodes, self.tree = new_tree()
        self.root, self.model = self.tree.build(sorted(model.items())), model
        return self.root, self.model

    def keep(self, root: TreeRef | None, model: Model) -> tuple[TreeRef | None, Model]:
        self.root, self.model = root, model
        return root, model

    @rule(target=versions, version=versions, edits=edits)
    def apply(
        self, version: tuple[TreeRef | None, Model], edits: dict[bytes, bytes | None]
    ) -> tuple[TreeRef | None, Model]:
        root, model = version
        return self.keep(self.tree.apply(root, sorted(edits.items())), edited(model, edits))

    @rule(target=versions, version=versions, limits=bounds)
    def delete_range(
        self, version: tuple[TreeRef | None, Model], limits: tuple[bytes, bytes | None]
    ) -> tuple[TreeRef | None, Model]:
        root, model = version
        doomed = [key for key, _ in self.tree.scan(root, *limits)]
        root = self.tree.apply(root, [(key, None) for key in doomed])
        return self.keep(
            root, {key: value for key, value in model.items() if not within(key, *limits)}
        )

    @rule(a=versions, b=versions)
    def diff(self, a: tuple[TreeRef | None, Model], b: tuple[TreeRef | None, Model]) -> None:
        changes = list(self.tree.diff(a[0], b[0]))
        assert changes == [(key, *pair) for key, pair in difference(a[1], b[1]).items()]
        # A diff is the edit from one to the other.
        assert self.tree.apply(a[0], [(key, after) for key, _, after in changes]) == b[0]

    @rule(target=versions, base=versions, ours=versions, theirs=versions)
    def merge(
        self,
        base: tuple[TreeRef | None, Model],
        ours: tuple[TreeRef | None, Model],
        theirs: tuple[TreeRef | None, Model],
    ) -> tuple[TreeRef | None, Model]:
        merged = self.tree.merge(base[0], ours[0], theirs[0], lambda _, __, mine, ___: mine)
        brought = difference(base[1], theirs[1])
        kept = difference(base[1], ours[1])
        changes = {key: after for key, (_, after) in brought.items() if key not in kept}
        return self.keep(merged, edited(ours[1], changes))

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "tree"):
            verify(self.tree, self.root, self.model)

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()


def test_versions() -> None:
    run_state_machine_as_test(
        Versions,
        settings=settings(
            max_examples=80,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


# ── nodes as bytes ───────────────────────────────────────────────────────────────────────────────

leaf_entries = st.dictionaries(
    st.binary(max_size=4) | st.binary(min_size=4, max_size=4),
    st.binary(max_size=5) | st.just(b"1234"),
    min_size=1,
    max_size=40,
)
inner_entries = st.dictionaries(
    st.binary(max_size=4), st.binary(min_size=48, max_size=48), min_size=1, max_size=20
)


@st.composite
def encoded_nodes(draw: st.DrawFn) -> bytes:
    level = draw(st.sampled_from([0, 0, 1, 12, 31]))
    entries = draw(inner_entries if level else leaf_entries)
    return encode_node(level, sorted(entries), [entries[key] for key in sorted(entries)])


@given(encoded_nodes())
def test_node_comes_back(data: bytes) -> None:
    node = decode_node(data)
    assert encode_node(node.level, node.keys, node.values) == data


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91" * 10_000)
def test_random_bytes_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_node(data)


@settings(max_examples=300)
@given(encoded_nodes(), st.data())
def test_mutated_nodes_are_corrupt_or_canonical(data: bytes, drawn: st.DataObject) -> None:
    mutated = bytearray(data)
    for _ in range(drawn.draw(st.integers(1, 3))):
        position = drawn.draw(st.integers(0, len(mutated)))
        length = drawn.draw(st.integers(0, 3))
        mutated[position : position + length] = drawn.draw(st.binary(max_size=4))
    with contextlib.suppress(CorruptError):
        node = decode_node(bytes(mutated))
        assert encode_node(node.level, node.keys, node.values) == bytes(mutated)


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=8)
    | st.text(max_size=3)
    | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@settings(max_examples=300)
@given(st.lists(json_like, min_size=6, max_size=6), st.integers(0, 63))
def test_wrong_fields_are_corrupt_or_canonical(fields: list[Any], mask: int) -> None:
    right = [0, 2, 1, b"ab", 1, b"xy"]
    mixed = [wrong if mask >> i & 1 else right[i] for i, wrong in enumerate(fields)]
    data = msgpack.packb(mixed)
    with contextlib.suppress(CorruptError):
        node = decode_node(data)
        assert encode_node(node.level, node.keys, node.values) == data


def _offsets(*ends: int) -> bytes:
    return struct.pack(f"<{len(ends)}I", *ends)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([0, 0, 0, b"", 0, b""], id="empty"),
        pytest.param([0, 1025, 2, bytes(2050), 0, b""], id="too many"),
        pytest.param([0, 2**62, 1, b"a", 0, b""], id="far too many"),
        pytest.param([-1, 1, 1, b"a", 1, b"v"], id="level below 0"),
        pytest.param([32, 1, 1, b"a", 1, b"v"], id="level too high"),
        pytest.param([True, 1, 1, b"a", 48, b"v" * 48], id="level is a bool"),
        pytest.param([0.0, 1, 1, b"a", 1, b"v"], id="level is a float"),
        pytest.param([0, True, 1, b"a", 1, b"v"], id="number is a bool"),
        pytest.param([0, 2, True, b"ab", 1, b"vw"], id="width is a bool"),
        pytest.param([0, 2, -1, b"ab", 1, b"vw"], id="width below 0"),
        pytest.param([0, 2, 1, b"ba", 1, b"vw"], id="keys descend"),
        pytest.param([0, 2, 1, b"aa", 1, b"vw"], id="keys are equal"),
        pytest.param([0, 2, 0, b"", 1, b"vw"], id="two empty keys"),
        pytest.param([0, 2, 1, b"abc", 1, b"vw"], id="too many bytes of keys"),
        pytest.param([0, 2, 1, b"ab", 1, b"v"], id="too few bytes of values"),
        pytest.param([0, 2, _offsets(1, 2), b"ab", 1, b"vw"], id="one width as offsets"),
        pytest.param([0, 2, 1, b"ab", _offsets(0, 0), b""], id="width 0 as offsets"),
        pytest.param([0, 2, 1, b"ab", _offsets(2, 1), b"v"], id="offsets descend"),
        pytest.param([0, 2, 1, b"ab", _offsets(1, 3), b"vw"], id="offsets beyond the end"),
        pytest.param([0, 2, 1, b"ab", _offsets(0, 1), b"vw"], id="offsets before the end"),
        pytest.param([0, 2, 1, b"ab", _offsets(2), b"vw"], id="an offset is missing"),
        pytest.param([0, 2, 1, b"ab", _offsets(2)[:3], b"vw"], id="a piece of an offset"),
        pytest.param([0, 2, 1, "ab", 1, b"vw"], id="keys are text"),
        pytest.param([0, 2, 1, b"ab", 1, "vw"], id="values are text"),
        pytest.param([0, 2, 1, b"ab", _offsets(0, 1), {"v": 1}], id="values are a map"),
        pytest.param([0, 2, 1, b"ab", None, b"vw"], id="no width"),
        pytest.param([0, 2, 1, b"ab", 1, b"vw", 0], id="a field too many"),
        pytest.param([0, 2, 1, b"ab", 1], id="a field is missing"),
        pytest.param([1, 2, 1, b"ab", 47, bytes(94)], id="references too short"),
        pytest.param([1, 2, 1, b"ab", _offsets(48, 95), bytes(95)], id="references vary"),
        pytest.param({"level": 0}, id="a map"),
        pytest.param("abcdef", id="a text"),
        pytest.param(7, id="a number"),
        pytest.param(msgpack.ExtType(1, b"123456"), id="an extension"),
    ],
)
def test_malformed_nodes_are_corrupt(fields: Any) -> None:
    with pytest.raises(CorruptError):
        decode_node(msgpack.packb(fields))


def test_other_spellings_are_corrupt() -> None:
    wide = encode_node(0, [b"k" * 300], [b"v"])
    assert wide[:6] == b"\x96\x00\x01\xcd\x01\x2c"
    decode_node(wide)
    for data in (
        wide[:3] + b"\xd1\x01\x2c" + wide[6:],  # a signed integer of the same length
        wide[:3] + b"\xce\x00\x00\x01\x2c" + wide[6:],
        b"\x96\xcc\x00" + wide[2:],
        b"\xdc\x00\x06" + wide[1:],
        wide[:-2] + b"\xc5\x00\x01v",
        wide + b"\0",
        wide[:-1],
    ):
        with pytest.raises(CorruptError):
            decode_node(data)


def test_encoder_asserts() -> None:
    for level, node_keys, node_values in (
        (0, [], []),
        (0, [b"a"], []),
        (0, [b"b", b"a"], [b"", b""]),
        (0, [b"a", b"a"], [b"", b""]),
        (-1, [b"a"], [b""]),
        (32, [b"a"], [bytes(48)]),
        (1, [b"a"], [bytes(47)]),
        (0, [struct.pack(">I", n) for n in range(1025)], [b""] * 1025),
    ):
        with pytest.raises(AssertionError):
            encode_node(level, node_keys, node_values)


# ── check ────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Forger:
    """Makes trees by hand, right or wrong; under a hash by which only capital letters end nodes."""

    nodes: Nodes
    tree: Tree

    def leaf(self, text: str) -> TreeRef:
        node_keys = [bytes([character]) for character in text.encode()]
        return self.node(0, node_keys, [b"v"] * len(node_keys), (len(node_keys), len(node_keys)))

    def inner(self, level: int, *children: TreeRef, last_keys: str | None = None) -> TreeRef:
        node_keys = [self.nodes.load(child.digest).keys[-1] for child in children]
        if last_keys is not None:
            node_keys = [bytes([character]) for character in last_keys.encode()]
        refs = [struct.pack("<32sQQ", *astuple(child)) for child in children]
        count, nbytes = (
            sum(sums) for sums in zip(*(astuple(child)[1:] for child in children), strict=True)
        )
        return self.node(level, node_keys, refs, (count, nbytes % 2**64))

    def node(
        self, level: int, node_keys: list[bytes], node_values: list[bytes], sums: tuple[int, int]
    ) -> TreeRef:
        digest = self.nodes.save(Node(level, node_keys, node_values))
        return TreeRef(Digest(digest), *sums)


@pytest.fixture
def forger(monkeypatch: pytest.MonkeyPatch) -> Forger:
    monkeypatch.setattr(btree, "MAX_ENTRIES", 4)
    monkeypatch.setattr(node, "MAX_ENTRIES", 4)
    monkeypatch.setattr(
        btree, "key_hash", lambda key: 2**64 - 1 - 31 if b"A" <= key <= b"Z" else 2**64 - 1
    )
    return Forger(*new_tree())


def test_check_accepts_right_forgeries(forger: Forger) -> None:
    assert forger.inner(1, forger.leaf("A"), forger.leaf("B"), forger.leaf("ab")) == (
        forger.tree.build((key, b"v") for key in (b"A", b"B", b"a", b"b"))
    )
    for right in (
        forger.leaf("ab"),
        forger.leaf("A"),
        forger.inner(1, forger.leaf("0123"), forger.leaf("45A"), forger.leaf("a")),
        forger.inner(1, forger.leaf("A"), forger.leaf("B")),
    ):
        forger.tree.check(right)


def _too_short(forge: Forger) -> TreeRef:
    return forge.inner(1, forge.leaf("012"), forge.leaf("45A"))


def _goes_on(forge: Forger) -> TreeRef:
    return forge.leaf("0Aa")


def _goes_on_below(forge: Forger) -> TreeRef:
    return forge.inner(1, forge.leaf("01A"), forge.leaf("BCa"))


def _root_too_high(forge: Forger) -> TreeRef:
    return forge.inner(1, forge.leaf("012"))


def _wrong_count(forge: Forger) -> TreeRef:
    return replace(forge.leaf("012"), count=4)


def _wrong_nbytes(forge: Forger) -> TreeRef:
    return replace(forge.leaf("012"), nbytes=4)


def _wrong_sums_below(forge: Forger) -> TreeRef:
    return forge.inner(1, replace(forge.leaf("01A"), count=2), forge.leaf("a"))


def _sums_beyond_64_bits(forge: Forger) -> TreeRef:
    return forge.inner(1, *(replace(forge.leaf(text), nbytes=2**63) for text in ("A", "B", "a")))


def _overlap(forge: Forger) -> TreeRef:
    return forge.inner(1, forge.leaf("01A"), forge.leaf("9B"))


def _wrong_last_key(forge: Forger) -> TreeRef:
    return forge.inner(1, forge.leaf("01A"), forge.leaf("B"), last_keys="AC")


def _wrong_level(forge: Forger) -> TreeRef:
    return forge.inner(2, forge.leaf("01A"), forge.leaf("a"))


def _level_skipped_on_one_side(forge: Forger) -> TreeRef:
    four = forge.inner(1, *(forge.leaf(text) for text in "ABCD"))
    return forge.inner(2, four, forge.leaf("a"))


def _missing(forge: Forger) -> TreeRef:
    gone = forge.leaf("a")
    root = forge.inner(1, forge.leaf("01A"), gone)
    del forge.nodes.data[gone.digest]
    return root


@pytest.mark.parametrize(
    ("forge", "culprit"),
    [
        (_too_short, "012"),
        (_goes_on, None),
        (_goes_on_below, "BCa"),
        (_root_too_high, None),
        (_wrong_count, None),
        (_wrong_nbytes, None),
        (_wrong_sums_below, "01A"),
        (_sums_beyond_64_bits, None),
        (_overlap, "9B"),
        (_wrong_last_key, "B"),
        (_wrong_level, "01A"),
        (_level_skipped_on_one_side, "a"),
        (_missing, "a"),
    ],
)
def test_check_names_the_bad_node(
    forger: Forger, forge: Callable[[Forger], TreeRef], culprit: str | None
) -> None:
    root = forge(forger)
    named = root.digest
    if culprit is not None:
        named = node_digest(
            encode_node(0, [bytes([c]) for c in culprit.encode()], [b"v"] * len(culprit))
        )
    with pytest.raises(CorruptError, match=named.hex()):
        forger.tree.check(root)


@pytest.mark.parametrize("forge", [_overlap, _wrong_last_key, _wrong_level, _missing])
def test_misfits_are_noticed_on_the_way(forger: Forger, forge: Callable[[Forger], TreeRef]) -> None:
    root, tree = forge(forger), forger.tree
    for use in (
        lambda: list(tree.scan(root)),
        lambda: list(tree.walk(root)),
        lambda: list(tree.diff(None, root)),
        lambda: [tree.get(root, key) for key in (b"1", b"9", b"B", b"a")],
        lambda: [tree.apply(root, [(key, b"new")]) for key in (b"0", b"9", b"B", b"a")],
    ):
        with pytest.raises(CorruptError):
            use()


def test_sums_beyond_64_bits_are_not_written(forger: Forger) -> None:
    with pytest.raises(CorruptError):
        forger.tree.apply(_sums_beyond_64_bits(forger), [(b"b", b"v")])


@relaxed
@given(models.filter(lambda model: len(model) > 3), shapes.filter(lambda s: s.max_entries < 9))
def test_check_knows_the_shape(model: Model, shape: Shape) -> None:
    with shape.in_force():
        _, tree = new_tree()
        root = tree.build(sorted(model.items()))
        tree.check(root)
    for other in SHAPES:
        with other.in_force():
            # Under other rules the tree is right just if it is the one that they make.
            same = new_tree()[1].build(sorted(model.items())) == root
            try:
                tree.check(root)
            except CorruptError:
                assert not same
            else:
                assert same


# ── golden ───────────────────────────────────────────────────────────────────────────────────────


def _blob(n: int) -> bytes:
    return struct.pack("<4Q", n, n * n, n + 1, 7) + struct.pack("<I", n % 5000)


def _unending(n: int) -> list[bytes]:
    candidates = (struct.pack(">II", i // 100, i % 100) for i in range(2 * n))
    return [key for key in candidates if key_hash(key) & 31][:n]


GOLDEN: dict[str, tuple[Callable[[], Model], int, int, int, str]] = {
    "one entry": (
        lambda: {b"key": _blob(1)},
        1,
        1,
        1,
        "87ab2af0a06fc9e80462e4bc612ba1da59f98e662b32dc07122610b9afba4f02",
    ),
    "no dimensions": (
        lambda: {b"": _blob(3)},
        1,
        1,
        3,
        "76d4e25bd93e8b617f2d6af79b76f974fae976895ec0386e9e1f5892be9b82c0",
    ),
    "grid of 5000": (
        lambda: {struct.pack(">II", n // 100, n % 100): _blob(n) for n in range(5000)},
        163,
        5000,
        12497500,
        "62e8f9135611b8b2b71d135b5ade86d3c83d4ec709a7fe75d22c566c1d3478bf",
    ),
    "names": (
        lambda: {b"name-%d" % n: _blob(n) for n in range(300)},
        10,
        300,
        44850,
        "8c7322cf928877214cdbdfa296e69273160bc772bb779c3a4eeefad5e476a81a",
    ),
    "nodes cut at 1024": (
        lambda: {key: _blob(1) for key in _unending(3000)},
        4,
        3000,
        3000,
        "3820f11acc3f469ae079efb5cbbc4462c55734b0c2e177a56c3215bfa5e105e1",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str) -> None:
    """What is on disk has these digests; a change here is another format."""
    make, nodes_count, count, nbytes, digest = GOLDEN[name]
    nodes = Nodes()
    tree = Tree(nodes, blob_measure)
    root = tree.build(sorted(make().items()))
    assert root is not None
    tree.check(root)
    assert (len(nodes.data), root.count, root.nbytes, root.digest.hex()) == (
        nodes_count,
        count,
        nbytes,
        digest,
    )


def test_golden_bytes() -> None:
    assert encode_node(0, [b"aa", b"bb"], [b"", b"xyz"]) == (
        b"\x96"  # six fields
        b"\x00\x02"  # level, number of entries
        b"\x02\xc4\x04aabb"  # keys: their width; the bytes
        b"\xc4\x08\x00\x00\x00\x00\x03\x00\x00\x00\xc4\x03xyz"  # values: their ends; the bytes
    )


def test_values_alone() -> None:
    """They are read without the keys, if they are of one width; else that is told."""
    assert decode_values(encode_node(0, [b"a", b"bc"], [b"123", b"456"])) == (0, 3, b"123456")
    reference = bytes(48)
    assert decode_values(encode_node(2, [b"a"], [reference])) == (2, 48, reference)
    for data in (
        encode_node(0, [b"a", b"b"], [b"1", b"23"]),
        msgpack.packb([0, 2, 1, b"ab", 3, b"12345"]),
        msgpack.packb([0, 2, 1, b"ab", 3]),
        msgpack.packb([99, 1, 1, b"a", 1, b"1"]),
        msgpack.packb([0, 1, 1, b"a", -1, b""]),
        b"",
        b"\xc1",
    ):
        with pytest.raises(CorruptError, match="tree node is damaged"):
            decode_values(data)
