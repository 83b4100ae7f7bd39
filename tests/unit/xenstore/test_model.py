"""The store against a dictionary: any order of writes, removals and transactions."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyxen.abi.xs_wire import Error
from pyxen.xenstore.errors import XsError
from pyxen.xenstore.store import Store
from tests.unit.xenstore.talk import Party

paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda names: "/" + "/".join(names))
values = st.binary(max_size=4)
Model = dict[str, bytes]


def put(model: Model, path: str, value: bytes) -> None:
    names = path.split("/")[1:]
    for depth in range(1, len(names)):
        model.setdefault("/" + "/".join(names[:depth]), b"")
    model[path] = value


def drop(model: Model, path: str) -> bool:
    """False: refused, since not even the parent is there."""
    parent = path.rpartition("/")[0]
    if parent and parent not in model:
        return False
    for other in [other for other in model if other == path or other.startswith(path + "/")]:
        del model[other]
    return True


class StoreMachine(RuleBasedStateMachine):
    """One transaction at most is open beside what is done outside of it."""

    @initialize()
    def start(self) -> None:
        self.party = Party(Store(), 0)
        self.model: Model = {}
        self.tx = 0
        self.inside: Model = {}
        self.steps: list[tuple[str, bytes | None]] = []
        self.read: dict[str, bytes | None] = {}

    @rule(path=paths, value=values)
    def write(self, path: str, value: bytes) -> None:
        self.party.write(path, value)
        put(self.model, path, value)

    @rule(path=paths)
    def remove(self, path: str) -> None:
        try:
            self.party.rm(path)
        except XsError as error:
            assert error.error is Error.ENOENT
            assert not drop(dict(self.model), path)
        else:
            assert drop(self.model, path)

    @rule()
    def begin(self) -> None:
        if not self.tx:
            self.tx = self.party.begin()
            self.inside, self.steps, self.read = dict(self.model), [], {}

    @rule(path=paths, value=values)
    def write_inside(self, path: str, value: bytes) -> None:
        if self.tx:
            self.party.write(path, value, tx=self.tx)
            put(self.inside, path, value)
            self.steps.append((path, value))

    @rule(path=paths)
    def remove_inside(self, path: str) -> None:
        if self.tx and drop(dict(self.inside), path):
            self.party.rm(path, tx=self.tx)
            drop(self.inside, path)
            self.steps.append((path, None))

    @rule(path=paths)
    def read_inside(self, path: str) -> None:
        if not self.tx:
            return
        try:
            value = self.party.read(path, tx=self.tx)
        except XsError as error:
            assert error.error is Error.ENOENT
            assert path not in self.inside
        else:
            assert self.inside[path] == value
        if not self.steps:  # before its own changes, the transaction has read what was there at its start
            self.read.setdefault(path, self.inside.get(path))

    @rule(commit=st.booleans())
    def end(self, commit: bool) -> None:
        if not self.tx:
            return
        unchanged = self.model == self.start_of_transaction()
        try:
            self.party.end(self.tx, commit=commit)
        except XsError as error:
            assert error.error is Error.EAGAIN
            assert commit and not unchanged
        else:
            if commit:
                # As if all of it had happened now: what was read is so still, and the steps are done again.
                assert all(self.model.get(path) == value for path, value in self.read.items())
                for path, value in self.steps:
                    if value is None:
                        assert drop(self.model, path)
                    else:
                        put(self.model, path, value)
        self.tx = 0

    def start_of_transaction(self) -> Model:
        tree = self.party.connection.transactions[self.tx]._base
        found: Model = {}
        for path, node in tree._paths():
            if path:
                found["/" + "/".join(path)] = node.value
        return found

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "party"):
            return
        for path in ("/a", "/a/b", "/b/c", "/c/a/b"):
            if path in self.model:
                assert self.party.read(path) == self.model[path]
        found = {"/" + "/".join(path): node.value for path, node in self.party.store.tree._paths() if path}
        assert found == self.model
        assert self.party.store.tree.owned == {0: len(found) + 1}


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase
