from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consensus.names import RepositoryName
from node.access import Action, Principal
from tests.node.gateway.rig import Rig, code, digest_of, running

UNKNOWN = "sha256:" + "0" * 64
ONE, TWO, THREE = b"a" * 1000, b"b" * 1000, b"c" * 500
WHOLE = ONE + TWO + THREE


class AllBut:
    """Everything is allowed, except to pull from one repository."""

    def __init__(self, hidden: str) -> None:
        self._hidden = RepositoryName(hidden)

    def allows(self, principal: Principal, action: Action, repository: RepositoryName | None) -> bool:
        return not (action is Action.PULL and repository in (None, self._hidden))


async def patch(rig: Rig, location: str, content: bytes, span: str | None = None) -> tuple[int, str]:
    """Status and Range."""
    headers = {"content-range": span} if span else {}
    response = await rig.client.patch(location, content=content, headers=headers)
    return response.status_code, response.headers.get("range", "")


async def stored(rig: Rig, digest: str, repository: str = "a") -> bytes:
    response = await rig.client.get(f"/v2/{repository}/blobs/{digest}")
    assert response.status_code == 200
    return response.content


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_at_once(rig: Rig, algorithm: str) -> None:
    digest = digest_of(WHOLE, algorithm)
    response = await rig.client.post(f"/v2/team/app/blobs/uploads/?digest={digest}", content=WHOLE)
    assert response.status_code == 201
    assert response.headers["location"] == f"/v2/team/app/blobs/{digest}"
    assert response.headers["docker-content-digest"] == digest
    assert await stored(rig, digest, "team/app") == WHOLE
    assert rig.open_uploads() == 0


async def test_begun_and_put(rig: Rig) -> None:
    begun = await rig.client.post("/v2/a/blobs/uploads/")
    assert (begun.status_code, begun.content) == (202, b"")
    assert begun.headers["range"] == "0-0"
    location, upload_id = begun.headers["location"], begun.headers["docker-upload-uuid"]
    assert location.startswith(f"/v2/a/blobs/uploads/{upload_id}.")
    digest = digest_of(WHOLE)
    response = await rig.client.put(f"{location}?digest={digest}", content=WHOLE)
    assert (response.status_code, response.headers["location"]) == (201, f"/v2/a/blobs/{digest}")
    assert await stored(rig, digest) == WHOLE
    assert (await rig.client.get(location)).status_code == 404


@pytest.mark.parametrize("last_in_put", [True, False])
async def test_in_chunks(rig: Rig, last_in_put: bool) -> None:
    location, digest = await rig.begin("a"), digest_of(WHOLE)
    first = await rig.client.patch(location, content=ONE, headers={"content-range": "0-999"})
    assert (first.status_code, first.headers["range"], first.content) == (202, "0-999", b"")
    assert first.headers["location"] == location
    assert await patch(rig, location, TWO, "1000-1999") == (202, "0-1999")
    last, headers = (THREE, {"content-range": "2000-2499"}) if last_in_put else (b"", {})
    if not last_in_put:
        assert await patch(rig, location, THREE, "2000-2499") == (202, "0-2499")
    response = await rig.client.put(f"{location}?digest={digest}", content=last, headers=headers)
    assert response.status_code == 201
    assert await stored(rig, digest) == WHOLE


async def test_as_a_stream(rig: Rig) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in (ONE, b"", TWO, THREE):
            yield chunk

    location = await rig.begin("a")
    response = await rig.client.patch(location, content=chunks())
    assert (response.status_code, response.headers["range"]) == (202, "0-2499")
    assert (await rig.client.put(f"{location}?digest={digest_of(WHOLE)}")).status_code == 201


async def test_digest_algorithm(rig: Rig) -> None:
    digest = digest_of(WHOLE, "sha512")
    begun = await rig.client.post("/v2/a/blobs/uploads/?digest-algorithm=sha512")
    response = await rig.client.put(f"{begun.headers['location']}?digest={digest}", content=WHOLE)
    assert response.status_code == 201
    unasked = await rig.begin("a")  # an algorithm that was not announced costs a second pass, no more
    assert (await rig.client.put(f"{unasked}?digest={digest}", content=WHOLE)).status_code == 201
    for algorithm in ("md5", "SHA256", ""):
        response = await rig.client.post(f"/v2/a/blobs/uploads/?digest-algorithm={algorithm}")
        assert (response.status_code, code(response)) == (400, "DIGEST_INVALID")


async def test_how_far_it_has_come(rig: Rig) -> None:
    location = await rig.begin("a")
    for content, expected in ((b"", "0-0"), (b"x", "0-0"), (ONE, "0-1000")):
        await patch(rig, location, content)
        status = await rig.client.get(location)
        assert (status.status_code, status.headers["range"], status.content) == (204, expected, b"")
        assert status.headers["location"] == location
        assert status.headers["docker-upload-uuid"] in location
        head = await rig.client.head(location)
        assert (head.status_code, head.headers["range"]) == (204, expected)


async def test_cancelled(rig: Rig) -> None:
    location = await rig.begin("a")
    await patch(rig, location, ONE)
    cancelled = await rig.client.delete(location)
    assert (cancelled.status_code, cancelled.content) == (204, b"")
    assert rig.open_uploads() == 0
    for method in ("GET", "PATCH", "PUT", "DELETE"):
        response = await rig.client.request(method, f"{location}?digest={UNKNOWN}")
        assert (response.status_code, code(response)) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("span", ["1000-1999", "0-999", "999-1998", "1001-2000", "5000-5999"])
async def test_out_of_order(rig: Rig, span: str) -> None:
    location = await rig.begin("a")
    begun = 0
    if span != "1000-1999":
        await patch(rig, location, ONE)
        begun = 1000
    for method, where in (("PATCH", location), ("PUT", f"{location}?digest={digest_of(WHOLE)}")):
        response = await rig.client.request(method, where, content=TWO, headers={"content-range": span})
        assert (response.status_code, code(response)) == (416, "BLOB_UPLOAD_INVALID")
        assert response.headers["range"] == f"0-{max(begun - 1, 0)}"
        assert response.headers["location"] == location
        assert response.json()["errors"][0]["detail"] == {"offset": begun}
    assert (await rig.client.get(location)).status_code == 204


@pytest.mark.parametrize("span", ["bytes 0-999/*", "0", "999-0", "x-y", "0-999\u0660", "+0-999"])
async def test_a_range_that_does_not_parse(rig: Rig, span: str) -> None:
    location = await rig.begin("a")
    for method in ("PATCH", "PUT"):
        response = await rig.client.request(
            method, f"{location}?digest={UNKNOWN}", content=ONE, headers={b"content-range": span.encode()}
        )
        assert (response.status_code, code(response)) == (400, "BLOB_UPLOAD_INVALID")


async def test_a_range_of_another_length(rig: Rig) -> None:
    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 100

    location = await rig.begin("a")
    response = await rig.client.patch(location, content=ONE, headers={"content-range": "0-998"})
    assert (response.status_code, code(response)) == (400, "SIZE_INVALID")
    for count in (9, 11):
        location = await rig.begin("a")
        response = await rig.client.patch(location, content=chunks(count), headers={"content-range": "0-999"})
        assert (response.status_code, code(response)) == (400, "SIZE_INVALID")
        assert (await rig.client.get(location)).headers["range"] == f"0-{min(count, 10) * 100 - 1}"


async def test_bytes_that_are_not_what_the_digest_says(rig: Rig) -> None:
    location = await rig.begin("a")
    for method, where in (("PUT", f"{location}?digest={UNKNOWN}"), ("POST", f"/v2/a/blobs/uploads/?digest={UNKNOWN}")):
        response = await rig.client.request(method, where, content=WHOLE)
        assert (response.status_code, code(response)) == (400, "DIGEST_INVALID")
        assert response.json()["errors"][0]["detail"] == {"expected": UNKNOWN, "actual": digest_of(WHOLE)}
    assert (await rig.client.get(location)).status_code == 404
    assert rig.open_uploads() == 0


@pytest.mark.parametrize("digest", ["", "x", "sha256:x", "sha256:" + "F" * 64, "sha256:..%2fx"])
async def test_digests_that_cannot_be(rig: Rig, digest: str) -> None:
    location = await rig.begin("a")
    for method, where in [
        ("PUT", f"{location}?digest={digest}"),
        ("PUT", f"{location}"),
        ("POST", f"/v2/a/blobs/uploads/?digest={digest}"),
        ("POST", f"/v2/a/blobs/uploads/?mount={digest or 'x'}&from=b"),
    ]:
        response = await rig.client.request(method, where, content=b"")
        assert (response.status_code, code(response)) == (400, "DIGEST_INVALID")
    assert (await rig.client.get(location)).status_code == 204


async def test_contradicting_parameters(rig: Rig) -> None:
    one, two = digest_of(ONE), digest_of(TWO)
    response = await rig.client.post(f"/v2/a/blobs/uploads/?digest={one}&digest={two}", content=ONE)
    assert (response.status_code, code(response)) == (400, "UNSUPPORTED")
    same = await rig.client.post(f"/v2/a/blobs/uploads/?digest={one}&digest={one}", content=ONE)
    assert same.status_code == 201


async def test_an_upload_is_bound_to_its_repository_and_cannot_be_guessed(rig: Rig) -> None:
    location = await rig.begin("a")
    token = location.rpartition("/")[2]
    upload_id = token.partition(".")[0]
    forged = [f"/v2/a/blobs/uploads/{name}" for name in (upload_id, token[:-1], f"{token}0", f"..{token}", "x")]
    for path in (f"/v2/b/blobs/uploads/{token}", f"/v2/a/b/blobs/uploads/{token}", *forged):
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            response = await rig.client.request(method, f"{path}?digest={UNKNOWN}", content=b"x")
            assert (response.status_code, code(response)) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert (await rig.client.get(location)).headers["range"] == "0-0"


async def test_one_request_at_a_time_writes_to_an_upload(rig: Rig) -> None:
    location = await rig.begin("a")
    holder = await rig.uploads.resume(rig.tokens.read(location.rpartition("/")[2], RepositoryName("a")))
    response = await rig.client.patch(location, content=ONE)
    assert (response.status_code, code(response)) == (409, "BLOB_UPLOAD_INVALID")
    assert response.headers["retry-after"] == "1"
    await holder.suspend()
    assert (await patch(rig, location, ONE))[0] == 202


async def test_open_uploads_are_bounded(data: Path) -> None:
    async with running(data, limits={"uploads": 2}) as rig:
        locations = [await rig.begin("a") for _ in range(2)]
        for where in ("", f"?digest={digest_of(ONE)}", f"?mount={UNKNOWN}&from=b"):
            response = await rig.client.post(f"/v2/a/blobs/uploads/{where}", content=b"")
            assert (response.status_code, code(response)) == (429, "TOOMANYREQUESTS")
            assert int(response.headers["retry-after"]) >= 1
        assert (await patch(rig, locations[0], ONE))[0] == 202


async def test_a_blob_over_the_bound(data: Path) -> None:
    async with running(data, limits={"blob_bytes": 1500}) as rig:
        location = await rig.begin("a")
        await patch(rig, location, ONE)
        for span in ("1000-1999", None):
            assert (await patch(rig, location, TWO, span))[0] == 413
        response = await rig.client.post(f"/v2/a/blobs/uploads/?digest={digest_of(WHOLE)}", content=WHOLE)
        assert (response.status_code, code(response)) == (413, "SIZE_INVALID")
        assert (await rig.client.get(location)).headers["range"] == "0-999"


async def test_a_blob_that_is_announced_to_be_over_the_bound_is_not_read(data: Path) -> None:
    async with running(data, limits={"blob_bytes": 1500}) as rig:
        location = await rig.begin("a")
        read = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal read
            for _ in range(3):
                read += 1
                yield b"x" * 600

        for method, path in (
            ("POST", f"/v2/a/blobs/uploads/?digest={UNKNOWN}"),
            ("PATCH", location),
            ("PUT", f"{location}?digest={UNKNOWN}"),
        ):
            response = await rig.client.request(method, path, content=chunks(), headers={"content-length": "1800"})
            assert (response.status_code, code(response)) == (413, "SIZE_INVALID")
        assert read == 0
        assert (await rig.client.get(location)).headers["range"] == "0-0"


async def test_no_room_for_more(data: Path) -> None:
    async with running(data) as rig:
        digest = await rig.push_blob("a", ONE)
    async with running(data, limits={"free_bytes": 2**62}) as rig:
        for where in ("", f"?digest={digest_of(TWO)}"):
            response = await rig.client.post(f"/v2/a/blobs/uploads/{where}", content=TWO)
            assert (response.status_code, code(response)) == (507, "STORAGE_FULL")
        assert await stored(rig, digest) == ONE
    assert rig.open_uploads() == 0


# When the log cannot be reached


async def test_a_closed_upload_that_the_log_did_not_take_sends_nothing_again(data: Path) -> None:
    digest = digest_of(WHOLE)
    async with running(data) as rig:
        location = await rig.begin("a")
        await patch(rig, location, WHOLE)
        await rig.log.close()
        response = await rig.client.put(f"{location}?digest={digest}")
        assert (response.status_code, code(response)) == (503, "UNAVAILABLE")
        assert 1 <= int(response.headers["retry-after"]) <= 5
        assert (await rig.client.get(f"/v2/a/blobs/{digest}")).status_code == 404
        manifest = await rig.push_manifest("a", "v1", b"{}", media_type="application/x")
        assert (manifest.status_code, code(manifest)) == (503, "UNAVAILABLE")
    async with running(data) as rig:
        assert (await rig.client.put(f"{location}?digest={digest}")).status_code == 201
        assert await stored(rig, digest) == WHOLE
        assert rig.open_uploads() == 0


@pytest.mark.parametrize("digest", [digest_of(WHOLE), digest_of(ONE)], ids=["the same", "another"])
async def test_bytes_sent_again_to_a_closed_upload_are_passed_over(data: Path, digest: str) -> None:
    async with running(data) as rig:
        location = await rig.begin("a")
        await rig.log.close()
        first = await rig.client.put(f"{location}?digest={digest_of(WHOLE)}", content=WHOLE)
        assert first.status_code == 503
    async with running(data) as rig:
        again = await rig.client.put(f"{location}?digest={digest}", content=WHOLE)
        assert again.status_code == (201 if digest == digest_of(WHOLE) else 400)
        assert rig.open_uploads() == 0


async def test_whoever_missed_the_answer_may_ask_again(rig: Rig) -> None:
    location, digest = await rig.begin("a"), digest_of(WHOLE)
    for _ in range(2):
        response = await rig.client.put(f"{location}?digest={digest}", content=WHOLE)
        assert (response.status_code, response.headers["docker-content-digest"]) == (201, digest)
    other = await rig.client.put(f"{location}?digest={digest_of(ONE)}", content=ONE)
    assert (other.status_code, code(other)) == (404, "BLOB_UPLOAD_UNKNOWN")
    forged = await rig.client.put(f"/v2/a/blobs/uploads/x?digest={digest}", content=WHOLE)
    assert forged.status_code == 404


async def test_a_push_at_once_that_the_log_did_not_take_leaves_no_upload(rig: Rig) -> None:
    await rig.log.close()
    response = await rig.client.post(f"/v2/a/blobs/uploads/?digest={digest_of(WHOLE)}", content=WHOLE)
    assert response.status_code == 503
    assert rig.open_uploads() == 0


# Mounting


@pytest.mark.parametrize("source", ["&from=b", "", "&from="])
async def test_mounted(rig: Rig, source: str) -> None:
    digest = await rig.push_blob("b", WHOLE)
    response = await rig.client.post(f"/v2/a/blobs/uploads/?mount={digest}{source}")
    assert (response.status_code, response.headers["location"]) == (201, f"/v2/a/blobs/{digest}")
    assert response.headers["docker-content-digest"] == digest
    assert await stored(rig, digest) == WHOLE
    again = await rig.client.post(f"/v2/a/blobs/uploads/?mount={digest}&from=nowhere")
    assert again.status_code == 201  # it is here already
    assert rig.open_uploads() == 0


@pytest.mark.parametrize("source", ["&from=c", ""])
async def test_what_cannot_be_mounted_begins_an_upload(rig: Rig, source: str) -> None:
    if source:
        await rig.push_blob("b", WHOLE)
    digest = digest_of(WHOLE)
    response = await rig.client.post(f"/v2/a/blobs/uploads/?mount={digest}{source}")
    assert response.status_code == 202
    put = await rig.client.put(f"{response.headers['location']}?digest={digest}", content=WHOLE)
    assert put.status_code == 201


async def test_a_source_that_may_not_be_read_is_like_an_absent_one(data: Path) -> None:
    async with running(data, policy=AllBut("secret")) as rig:
        digest = await rig.push_blob("secret", WHOLE)
        hidden = await rig.client.post(f"/v2/a/blobs/uploads/?mount={digest}&from=secret")
        anywhere = await rig.client.post(f"/v2/a/blobs/uploads/?mount={digest}")
        absent = await rig.client.post(f"/v2/a/blobs/uploads/?mount={UNKNOWN}&from=absent")
        assert [hidden.status_code, anywhere.status_code, absent.status_code] == [202] * 3
        assert hidden.headers.keys() == absent.headers.keys()


async def test_a_source_that_cannot_be(rig: Rig) -> None:
    response = await rig.client.post(f"/v2/a/blobs/uploads/?mount={UNKNOWN}&from=NO")
    assert (response.status_code, code(response)) == (400, "NAME_INVALID")
