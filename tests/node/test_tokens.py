from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.entropy import new_uuid
from consensus.names import RepositoryName
from node.errors import UploadUnknown
from node.tokens import UploadTokens, named_node

APP = RepositoryName("team/app")
TOKENS = UploadTokens("1" * 32, b"s" * 32)


def test_a_token_says_which_upload_it_is() -> None:
    upload_id = new_uuid()
    token = TOKENS.issue(upload_id, APP)
    assert TOKENS.read(token, APP) == upload_id
    assert token.startswith(f"{upload_id}.{'1' * 32}.")
    assert UploadTokens("1" * 32, b"s" * 32).read(token, APP) == upload_id


@pytest.mark.parametrize(
    "other",
    [UploadTokens("1" * 32, b"t" * 32), UploadTokens("2" * 32, b"s" * 32)],
    ids=["another secret", "another node"],
)
def test_another_node_or_cluster_does_not_know_it(other: UploadTokens) -> None:
    with pytest.raises(UploadUnknown):
        other.read(TOKENS.issue(new_uuid(), APP), APP)


def test_it_is_bound_to_its_repository() -> None:
    for name in ("team/ap", "team/app/x", "app", "team"):
        with pytest.raises(UploadUnknown):
            TOKENS.read(TOKENS.issue(new_uuid(), APP), RepositoryName(name))


def test_every_character_counts() -> None:
    token = TOKENS.issue(new_uuid(), APP)
    for position, character in enumerate(token):
        forged = token[:position] + ("0" if character != "0" else "1") + token[position + 1 :]
        with pytest.raises(UploadUnknown):
            TOKENS.read(forged, APP)


@given(st.text(max_size=400))
def test_other_text_is_no_token(text: str) -> None:
    with pytest.raises(UploadUnknown):
        TOKENS.read(text, APP)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        UploadTokens("1", b"short")


def test_anybody_can_read_which_node_a_token_names() -> None:
    assert named_node(TOKENS.issue(new_uuid(), APP)) == "1" * 32
    for text in ("", ".", "a.b", "a.b.c.d", "a" * 300 + ".b.c", "..", "a..c", "a.b.\u00e9"):
        assert named_node(text) == ""
