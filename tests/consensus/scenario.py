"""Scenario scripts: commands in a file, and under each the outcome and the rows it led to.

A block is one or more lines, then `----`, then what they print, then an empty line. `#` begins a comment. To write what
the scripts print now into them, for review as a diff:

    .venv/bin/python tests/consensus/scenario.py --write

    enrol NAME                                     the proposer for what follows is the newest one enrolled
    record REPOSITORY BLOB=SIZE ... [store=a]
    mount REPOSITORY BLOB [from=REPOSITORY]
    stage REPOSITORY MANIFEST PART/PARTS           the part's share of the manifest's bytes
    put REPOSITORY MANIFEST [tags=A,B] [blobs=A,B] [children=M,N] [subject=M] [type=T] [artifact=T] [expect=M|absent]
        [sparse] [staged] [says=CONTENT] [size=N] [annotation=TEXT]
    delete-tag REPOSITORY TAG [expect=MANIFEST]
    delete-manifest REPOSITORY MANIFEST
    delete-blob REPOSITORY BLOB
    again                                          the last proposal once more: same proposer, same sequence
    raw HEX                                        an entry that may be no command at all
    minutes N                                      N commands without effect, each proposed a minute after the last
    reopen                                         closes the state and opens it anew
    dump                                           every row that a reader or proposer can see

Any proposal takes `as=PROPOSER`, `sequence=N`, `acknowledged=N` and `at=SECONDS` (proposed log time). Blobs and
manifests are named by a word; the digest is that of the word's UTF-8 bytes, and a manifest's bytes are that word.
"""

import argparse
import hashlib
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from consensus import generation
from consensus.codec import encode
from consensus.commands import (
    ABSENT,
    BlobFact,
    Command,
    DeleteBlob,
    DeleteManifest,
    DeleteTag,
    EnrolProposer,
    Envelope,
    Expected,
    ManifestFacts,
    MountBlob,
    Outcome,
    PutManifest,
    RecordBlobs,
    StageContent,
)
from consensus.log import Entry
from consensus.names import Digest, RepositoryName, StoreId, Tag
from consensus.state import State
from tests.consensus import invariants

FOLDER = Path(__file__).with_name("scenarios")
CLUSTER = "scenario"
TYPES = {
    "image": "application/vnd.oci.image.manifest.v1+json",
    "index": "application/vnd.oci.image.index.v1+json",
    "docker": "application/vnd.docker.distribution.manifest.v2+json",
}
_WORDS = {media_type: word for word, media_type in TYPES.items()}


def digest_of(word: str) -> Digest:
    """The digest of what the word stands for."""
    return Digest("sha256", hashlib.sha256(word.encode()).hexdigest())


class Scenario:
    """One script's state and the names it has used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._state = State.open(folder, CLUSTER)
        self._index = self._state.applied
        self._proposer = 0
        self._sequences: dict[int, int] = {}
        self._last = b""
        self._words: dict[str, str] = {}
        self._seconds = 1000

    def run(self, line: str) -> Iterator[str]:
        """Runs one line; yields what it prints. The invariants hold afterwards, or this raises AssertionError."""
        words, options = _split(line)
        verb = words.pop(0)
        if verb == "dump":
            yield from self._dump()
        elif verb == "reopen":
            self._state.close()
            self._state = State.open(self._folder, CLUSTER)
            yield f"applied {self._state.applied}"
        elif verb in ("again", "raw"):
            yield self._apply(self._last if verb == "again" else bytes.fromhex("".join(words)))
        elif verb == "minutes":
            yield self._pass_minutes(int(words[0]), options)
        elif verb == "enrol":
            self._last = encode(Envelope(0, 0, 0, self._time(options), EnrolProposer(words[0])))
            yield self._apply(self._last)
            self._proposer = self._index
        else:
            command = _COMMANDS[verb](self, words, options)
            self._last = encode(self._envelope(command, options))
            yield self._apply(self._last)
        with self._read() as connection:
            invariants.check(connection)

    def close(self) -> None:
        """Idempotent."""
        self._state.close()

    def _pass_minutes(self, count: int, options: dict[str, str]) -> str:
        nothing = DeleteTag(RepositoryName("nowhere"), Tag("never"), None)
        for _ in range(count):
            self._seconds += 60
            envelope = self._envelope(nothing, options)
            acknowledged = replace(envelope, acknowledged=envelope.sequence - 1)
            self._apply(encode(acknowledged))
        return f"{self._index}: {count} minutes have passed"

    def _time(self, options: dict[str, str]) -> int:
        self._seconds = int(options.get("at", self._seconds))
        return self._seconds * 1000

    def _envelope(self, command: Command, options: dict[str, str]) -> Envelope:
        proposer = int(options.get("as", self._proposer))
        sequence = int(options.get("sequence", self._sequences.get(proposer, 0) + 1))
        self._sequences[proposer] = max(sequence, self._sequences.get(proposer, 0))
        return Envelope(proposer, sequence, int(options.get("acknowledged", 0)), self._time(options), command)

    def _apply(self, payload: bytes) -> str:
        self._index += 1
        return self._show(self._state.apply([Entry(self._index, payload)])[0])

    def _show(self, outcome: Outcome) -> str:
        reason = f" {outcome.reason}" if outcome.reason else ""
        digests = "".join(f" {self._word(str(digest))}" for digest in outcome.digests)
        created = " created" if outcome.created else ""
        return (
            f"{self._index}: {outcome.status}{reason}{digests}{created} index={outcome.index} changed={outcome.changed}"
        )

    def _word(self, digest: str) -> str:
        return self._words.get(digest, digest[:15])

    def _digest(self, word: str) -> Digest:
        digest = digest_of(word)
        self._words[str(digest)] = word
        return digest

    def _digests(self, text: str) -> tuple[Digest, ...]:
        return tuple(self._digest(word) for word in text.split(",") if word)

    def _read(self) -> "_Reader":
        path = generation.current(self._folder)
        assert path is not None
        return _Reader(path)

    def _dump(self) -> Iterator[str]:
        with self._read() as connection:

            def word(packed: bytes | None) -> str:
                return self._word(str(Digest.from_bytes(packed))) if packed else "-"

            connection.create_function("word", 1, word, deterministic=True)
            connection.create_function("short", 1, lambda text: _WORDS.get(text, text), deterministic=True)
            for query in _DUMP:
                for (line,) in connection.execute(query):
                    yield line

    def record(self, words: list[str], options: dict[str, str]) -> Command:
        store = StoreId(hashlib.md5(options.pop("store", "a").encode(), usedforsecurity=False).hexdigest())
        known = ("as", "sequence", "acknowledged", "at")
        blobs = [BlobFact(self._digest(word), int(size)) for word, size in options.items() if word not in known]
        return RecordBlobs(RepositoryName.parse(words[0]), store, tuple(blobs))

    def mount(self, words: list[str], options: dict[str, str]) -> Command:
        source = RepositoryName.parse(options["from"]) if "from" in options else None
        return MountBlob(RepositoryName.parse(words[0]), self._digest(words[1]), source)

    def stage(self, words: list[str], _options: dict[str, str]) -> Command:
        part, parts = (int(number) for number in words[2].split("/"))
        content = words[1].encode()
        start, end = (len(content) * number // parts for number in (part, part + 1))
        return StageContent(RepositoryName.parse(words[0]), self._digest(words[1]), part, parts, content[start:end])

    def put(self, words: list[str], options: dict[str, str]) -> Command:
        repository, name, *flags = words
        content = options.get("says", name).encode()
        annotations = (("note", options["annotation"]),) if "annotation" in options else ()
        facts = ManifestFacts(
            media_type=TYPES[options.get("type", "index" if "children" in options else "image")],
            artifact_type=options.get("artifact"),
            subject=self._digest(options["subject"]) if "subject" in options else None,
            blobs=self._digests(options.get("blobs", "")),
            manifests=self._digests(options.get("children", "")),
            annotations=annotations,
        )
        return PutManifest(
            repository=RepositoryName.parse(repository),
            digest=self._digest(name),
            size_bytes=int(options.get("size", len(content))),
            content=None if "staged" in flags else content,
            facts=facts,
            tags=tuple(Tag.parse(tag) for tag in options.get("tags", "").split(",") if tag),
            expected=self._expected(options.get("expect")),
            sparse="sparse" in flags,
        )

    def _expected(self, word: str | None) -> Expected:
        return ABSENT if word == "absent" else self._digest(word) if word else None

    def delete_tag(self, words: list[str], options: dict[str, str]) -> Command:
        expected = self._digest(options["expect"]) if "expect" in options else None
        return DeleteTag(RepositoryName.parse(words[0]), Tag.parse(words[1]), expected)

    def delete_manifest(self, words: list[str], _options: dict[str, str]) -> Command:
        return DeleteManifest(RepositoryName.parse(words[0]), self._digest(words[1]))

    def delete_blob(self, words: list[str], _options: dict[str, str]) -> Command:
        return DeleteBlob(RepositoryName.parse(words[0]), self._digest(words[1]))


class _Reader:
    """A read-only connection for the length of a `with`."""

    def __init__(self, path: Path) -> None:
        self._connection = generation.open_reader(path)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


_COMMANDS: dict[str, Callable[[Scenario, list[str], dict[str, str]], Command]] = {
    "record": Scenario.record,
    "mount": Scenario.mount,
    "stage": Scenario.stage,
    "put": Scenario.put,
    "delete-tag": Scenario.delete_tag,
    "delete-manifest": Scenario.delete_manifest,
    "delete-blob": Scenario.delete_blob,
}

_DUMP = (
    "SELECT 'catalog changed=' || catalog_changed || ' time=' || (log_time_ms / 1000) FROM meta",
    "SELECT 'repository ' || name || ' tags_changed=' || tags_changed FROM repositories ORDER BY name",
    "SELECT 'blob ' || name || ' ' || word(digest) || ' size=' || size_bytes || ' changed=' || changed || ' holders='"
    " || (SELECT count(*) FROM holders h WHERE h.blob = b.id)"
    " FROM links JOIN blobs b ON b.id = blob JOIN repositories r ON r.id = repository ORDER BY name, word(digest)",
    "SELECT 'manifest ' || name || ' ' || word(digest) || ' ' || short(media_type) || ' subject=' || word(subject)"
    " || ' changed=' || changed || ' blobs=' || (SELECT count(*) FROM manifest_blobs n WHERE n.content = m.content"
    " AND n.repository = m.repository) || ' children=' || (SELECT count(*) FROM manifest_children n"
    " WHERE n.content = m.content AND n.repository = m.repository)"
    " FROM manifests m JOIN contents c ON c.id = content JOIN repositories r ON r.id = repository"
    " ORDER BY name, word(digest)",
    "SELECT 'tag ' || r.name || ' ' || t.name || ' -> ' || word(digest) || ' changed=' || changed"
    " FROM tags t JOIN contents c ON c.id = content JOIN repositories r ON r.id = repository ORDER BY r.name, t.name",
    "SELECT 'referrers ' || name || ' ' || word(s.digest) || ' changed=' || s.changed || ':' || coalesce("
    "(SELECT group_concat(' ' || line, '') FROM (SELECT word(f.digest) || '(' || coalesce(artifact_type, '-') || ')'"
    " AS line FROM referrers f WHERE f.repository = r.id AND f.subject = s.digest ORDER BY line)), '')"
    " FROM subjects s JOIN repositories r ON r.id = repository ORDER BY name, word(s.digest)",
    "SELECT 'staged ' || repository || ' ' || word(digest) || ' ' || part || '/' || parts || ' entry=' || entry"
    " FROM staged ORDER BY entry",
    "SELECT 'proposer ' || id || ' ' || p.name || ' acknowledged=' || acknowledged || ' used=' || (used_ms / 1000)"
    " || ' outcomes=' || coalesce((SELECT group_concat(sequence) FROM (SELECT sequence FROM outcomes"
    " WHERE proposer = id ORDER BY sequence)), '-') FROM proposers p ORDER BY id",
)


def _split(line: str) -> tuple[list[str], dict[str, str]]:
    words = line.split()
    options = dict(word.split("=", 1) for word in words if "=" in word)
    return [word for word in words if "=" not in word], options


def replay(script: str, folder: Path) -> str:
    """The script with its output as it is now."""
    scenario = Scenario(folder)
    try:
        return "\n\n".join(_replay_block(block, scenario) for block in script.strip().split("\n\n")) + "\n"
    finally:
        scenario.close()


def _replay_block(block: str, scenario: Scenario) -> str:
    lines = block.partition("\n----")[0].split("\n")
    commands = [line for line in lines if line and not line.startswith("#")]
    if not commands:
        return block
    printed = [text for line in commands for text in scenario.run(line)]
    return "\n".join([*lines, "----", *printed])


def main() -> int:
    """Prints which scripts differ from what they print now; with --write, writes it into them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write the output of now into the scripts")
    write = parser.parse_args().write
    different = 0
    for path in sorted(FOLDER.glob("*.txt")):
        with tempfile.TemporaryDirectory() as folder:
            now = replay(path.read_text(), Path(folder) / "state")
        if now != path.read_text():
            different += 1
            print(f"{'wrote' if write else 'differs'}: {path.name}")
            if write:
                path.write_text(now)
    return 0 if write else min(different, 1)


if __name__ == "__main__":
    sys.exit(main())
