"""What a manifest's bytes are read as, and what no registry should keep."""

import json
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.clock import monotonic
from consensus.codec import decode_command, encode_command, split_manifest
from consensus.commands import MAX_MANIFEST_BYTES, ManifestFacts, PutManifest
from consensus.errors import InvalidManifest
from consensus.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_ANNOTATIONS_BYTES,
    MAX_DESCRIPTORS,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    is_index,
    is_opaque,
    parse_manifest,
    undecided_children,
)
from consensus.names import Digest, RepositoryName

Json = dict[str, Any]
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
KNOWN = [OCI_MANIFEST, OCI_INDEX, OCI_ARTIFACT, DOCKER_MANIFEST, DOCKER_LIST]


def digest(number: int) -> Digest:
    return Digest("sha256", f"{number:064x}")


def descriptor(number: int, media_type: str = LAYER, **more: object) -> Json:
    return {"mediaType": media_type, "digest": str(digest(number)), "size": number, **more}


def image(**more: object) -> Json:
    return {"schemaVersion": 2, "config": descriptor(1, CONFIG), "layers": [descriptor(2), descriptor(3)], **more}


def index(**more: object) -> Json:
    return {"schemaVersion": 2, "manifests": [descriptor(4, OCI_MANIFEST), descriptor(5, OCI_INDEX)], **more}


def artifact(**more: object) -> Json:
    return {"artifactType": "application/x.y", "blobs": [descriptor(6, "text/plain")], **more}


def read(fields: object, media_type: str = OCI_MANIFEST) -> ManifestFacts:
    return parse_manifest(json.dumps(fields).encode(), media_type)


def reason(fields: object, media_type: str = OCI_MANIFEST) -> str:
    content = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    with pytest.raises(InvalidManifest) as refusal:
        parse_manifest(content, media_type)
    assert len(str(refusal.value)) < 300
    return str(refusal.value)


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_an_image_names_its_config_and_layers(media_type: str) -> None:
    facts = read(image(mediaType=media_type), media_type)
    assert facts == ManifestFacts(media_type, CONFIG, None, (digest(1), digest(2), digest(3)), (), ())


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index_names_its_children_and_has_no_artifact_type_of_its_own(media_type: str) -> None:
    assert read(index(), media_type) == ManifestFacts(media_type, None, None, (), (digest(4), digest(5)), ())


def test_an_artifact_manifest_names_its_blobs_and_subject() -> None:
    facts = read(artifact(subject=descriptor(9)), OCI_ARTIFACT)
    assert facts == ManifestFacts(OCI_ARTIFACT, "application/x.y", digest(9), (digest(6),), (), ())


def test_a_digest_named_twice_is_one_fact() -> None:
    assert read(image(layers=[descriptor(2), descriptor(1), descriptor(2)])).blobs == (digest(1), digest(2))


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_a_layer_that_may_not_be_distributed_need_not_be_here(media_type: str) -> None:
    foreign = descriptor(7, media_type, urls=["https://elsewhere.example/layer"])
    assert read(image(layers=[foreign, descriptor(2)])).blobs == (digest(1), digest(2))


def test_a_layer_with_urls_but_an_ordinary_type_must_be_here() -> None:
    assert digest(7) in read(image(layers=[descriptor(7, urls=["https://elsewhere.example/layer"])])).blobs


def test_a_build_cache_lists_layers_in_an_index() -> None:
    cache = [descriptor(2), descriptor(3, "application/vnd.buildkit.cacheconfig.v0"), descriptor(4, OCI_MANIFEST)]
    facts = read(index(manifests=cache), OCI_INDEX)
    assert (facts.blobs, facts.manifests) == ((digest(2), digest(3)), (digest(4),))


def test_children_of_unknown_types_are_undecided() -> None:
    unknown = [descriptor(7, "application/vnd.x.y"), {"digest": str(digest(8)), "size": 1}]
    known = [descriptor(4, OCI_MANIFEST), descriptor(5, OCI_INDEX.upper()), descriptor(6, DOCKER_LIST)]
    content = json.dumps(index(manifests=[*unknown, *known])).encode()
    assert undecided_children(content) == {digest(7), digest(8)}
    assert set(parse_manifest(content, OCI_INDEX).manifests) == {digest(number) for number in range(4, 9)}


@pytest.mark.parametrize(
    ("fields", "media_type", "expected"),
    [
        (image(artifactType="application/x"), OCI_MANIFEST, "application/x"),
        (image(artifactType=""), OCI_MANIFEST, CONFIG),
        (image(artifactType=None), OCI_MANIFEST, CONFIG),
        (image(config=descriptor(1, "")), OCI_MANIFEST, None),
        (index(artifactType="application/x"), OCI_INDEX, "application/x"),
        (index(artifactType=""), OCI_INDEX, None),
        (artifact(artifactType=None), OCI_ARTIFACT, None),
    ],
)
def test_the_artifact_type_is_the_one_that_referrers_shows(fields: Json, media_type: str, expected: str | None) -> None:
    assert read(fields, media_type).artifact_type == expected


@pytest.mark.parametrize(("fields", "media_type"), [(image(), OCI_MANIFEST), (index(), OCI_INDEX)])
def test_annotations_are_kept_for_what_has_a_subject(fields: Json, media_type: str) -> None:
    annotated = {**fields, "annotations": {"k": "ü", "": ""}}
    assert read(annotated, media_type).annotations == ()
    facts = read({**annotated, "subject": descriptor(9)}, media_type)
    assert (facts.subject, facts.annotations) == (digest(9), (("k", "ü"), ("", "")))


def test_docker_manifests_have_no_subject() -> None:
    assert read(image(subject=descriptor(9)), DOCKER_MANIFEST).subject is None


def test_sha512_digests_are_read() -> None:
    long = Digest("sha512", "c" * 128)
    assert read(image(layers=[{"digest": str(long), "size": 0}])).blobs == (digest(1), long)


@pytest.mark.parametrize("fields", [image(layers=None), image(layers=[]), image(annotations=None, subject=None)])
def test_what_is_null_counts_as_absent(fields: Json) -> None:
    assert digest(1) in read(fields).blobs


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 5000, json.dumps(image(subject=descriptor(9))).encode()])
@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "application/vnd.example+json"])
def test_any_other_media_type_is_opaque(content: bytes, media_type: str) -> None:
    assert is_opaque(media_type)
    assert not is_index(media_type)
    assert parse_manifest(content, media_type) == ManifestFacts(media_type, None, None, (), (), ())


@pytest.mark.parametrize("said", [*KNOWN, "application/vnd.example.other+json"])
@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "application/vnd.example+json"])
def test_no_type_hides_what_a_manifest_says_it_is(said: str, media_type: str) -> None:
    """Nothing would be read from it: its blobs could be deleted under it, and who asks for its real type not get it."""
    assert "mediaType" in reason(image(mediaType=said), media_type)
    assert "mediaType" in reason(image(mediaType=said, nested=[[{}]] * 2000), media_type)


@pytest.mark.parametrize("said", ["text/plain", "Text/Plain", "", None, 7, ["a/b"]])
def test_an_opaque_manifest_may_say_what_it_is(said: object) -> None:
    assert read(image(mediaType=said), "text/plain").media_type == "text/plain"


@pytest.mark.parametrize("media_type", KNOWN)
def test_a_known_type_is_known_in_any_case(media_type: str) -> None:
    fields = {OCI_INDEX: index, DOCKER_LIST: index, OCI_ARTIFACT: artifact}.get(media_type, image)()
    for said in ({}, {"mediaType": media_type}):
        assert read({**fields, **said}, media_type.upper()) == read(fields, media_type)
    assert "mediaType" in reason({**fields, "mediaType": media_type.upper()}, media_type)


def test_the_known_types_are_not_opaque() -> None:
    assert not any(map(is_opaque, KNOWN))
    assert [kind for kind in KNOWN if is_index(kind)] == [OCI_INDEX, DOCKER_LIST]


@pytest.mark.parametrize("suffix", ["json", "prettyjws"])
def test_docker_schema_1_is_refused_by_name(suffix: str) -> None:
    assert "schema 1" in reason(b"{}", f"application/vnd.docker.distribution.manifest.v1+{suffix}")
    assert "schemaVersion" in reason({"schemaVersion": 1, "fsLayers": []}, DOCKER_MANIFEST)


@pytest.mark.parametrize(
    ("fields", "media_type", "part"),
    [
        (image(mediaType=DOCKER_MANIFEST), OCI_MANIFEST, "Content-Type"),
        (image(mediaType=7), OCI_MANIFEST, "Content-Type"),
        (image(mediaType=""), OCI_MANIFEST, "Content-Type"),
        (image(manifests=[]), OCI_MANIFEST, "manifests does not belong"),
        (image(fsLayers=[]), OCI_MANIFEST, "fsLayers does not belong"),
        (index(layers=[]), OCI_INDEX, "layers does not belong"),
        (index(config={}), OCI_INDEX, "config does not belong"),
        (artifact(layers=[descriptor(1)]), OCI_ARTIFACT, "layers does not belong"),
        (image(schemaVersion=1), OCI_MANIFEST, "schemaVersion"),
        (image(schemaVersion=2.0), OCI_MANIFEST, "schemaVersion"),
        (image(schemaVersion=None), OCI_MANIFEST, "schemaVersion"),
        (image(config=None), OCI_MANIFEST, "config must be an object"),
        (image(config=[]), OCI_MANIFEST, "config must be an object"),
        (image(layers={}), OCI_MANIFEST, "layers must be an array"),
        (image(layers=[None]), OCI_MANIFEST, "each of layers"),
        (image(layers=[descriptor(1, size=-1)]), OCI_MANIFEST, "size of a layer"),
        (image(layers=[descriptor(1, size=1.5)]), OCI_MANIFEST, "size of a layer"),
        (image(layers=[descriptor(1, size=True)]), OCI_MANIFEST, "size of a layer"),
        (image(layers=[descriptor(1, size=None)]), OCI_MANIFEST, "size of a layer"),
        (image(layers=[descriptor(1, digest="sha256:../../x")]), OCI_MANIFEST, "digest of a layer"),
        (image(layers=[descriptor(1, digest="md5:" + "a" * 32)]), OCI_MANIFEST, "digest of a layer"),
        (image(layers=[descriptor(1, digest=None)]), OCI_MANIFEST, "digest of a layer"),
        (image(layers=[descriptor(1, mediaType=5)]), OCI_MANIFEST, "mediaType"),
        (image(layers=[descriptor(1, mediaType="a" * 256)]), OCI_MANIFEST, "mediaType"),
        (image(layers=[descriptor(1, mediaType="a/b\r\nX: y")]), OCI_MANIFEST, "mediaType"),
        (image(layers=[descriptor(1, urls="https://x")]), OCI_MANIFEST, "urls of a layer"),
        (image(layers=[descriptor(1, urls=[1])]), OCI_MANIFEST, "urls of a layer"),
        (image(layers=[descriptor(1, annotations={"k": 1})]), OCI_MANIFEST, "annotations must be strings"),
        (image(artifactType=["x"]), OCI_MANIFEST, "artifactType"),
        (image(subject="x"), OCI_MANIFEST, "subject must be an object"),
        (image(subject={}), OCI_MANIFEST, "size of subject"),
        (image(annotations=[]), OCI_MANIFEST, "annotations must be an object"),
        (image(annotations={"k": None}), OCI_MANIFEST, "annotations must be strings"),
        (image(subject=descriptor(9), annotations={"k": "\ud800"}), OCI_MANIFEST, "surrogate"),
        (
            image(subject=descriptor(9), annotations={"k": "x" * MAX_ANNOTATIONS_BYTES}),
            OCI_MANIFEST,
            "annotations take",
        ),
        (image(layers=[descriptor(1)] * (MAX_DESCRIPTORS + 1)), OCI_MANIFEST, "1001 descriptors"),
        (index(manifests=[descriptor(1)] * 10_000), OCI_INDEX, "10000 descriptors"),
        ([], OCI_MANIFEST, "a manifest must be an object"),
        ("text", OCI_MANIFEST, "a manifest must be an object"),
    ],
)
def test_what_is_not_a_manifest_is_refused_with_the_reason(fields: object, media_type: str, part: str) -> None:
    assert part in reason(fields, media_type)


def inside(text: bytes) -> bytes:
    return json.dumps(image(custom=0)).encode().replace(b'"custom": 0', b'"custom": ' + text)


def test_a_field_nobody_knows_is_let_pass() -> None:
    assert parse_manifest(inside(b"[1, 2.5, null, {}]"), OCI_MANIFEST).blobs


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"a": "ü"}'.encode("latin-1"), "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (inside(b"0} {"), "not JSON"),
        (inside(b"NaN"), "NaN"),
        (inside(b"-Infinity"), "-Infinity"),
        (inside(b"1e400"), "a number beyond"),
        (inside(b"0." + b"1" * 5000), "a number beyond"),
        (inside(b"9" * 5000), "64 bits"),
        (inside(b"9223372036854775808"), "64 bits"),
        (inside(b'"\n"'), "not JSON"),
        (inside(b'{"k": 1, "k": 1}'), "same key twice"),
        (inside(b'0, "layers": []'), "same key twice"),
        (inside(b"[" * 32 + b"]" * 32), "deeper than 32"),
        (inside(b'{"k":' * 900 + b"0" + b"}" * 900), "deeper than 32"),
        (inside(b"[" * 50_000 + b"]" * 50_000), "deeper than 32"),
        (inside(b"[" * 60_000), "deeper than 32"),
        (inside(b"[0" + b",0" * 100_000 + b"]"), "more than 100000 values"),
        (b"[" * MAX_MANIFEST_BYTES, "more than 100000 values"),
        (b"{}" * (MAX_MANIFEST_BYTES // 2), "more than 100000 values"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "at most"),
    ],
)
def test_json_that_readers_disagree_on_or_choke_on_is_refused(content: bytes, part: str) -> None:
    assert part in reason(content)


def test_numbers_up_to_64_bits_and_31_levels_inside_are_let_pass() -> None:
    parse_manifest(inside(b"[9223372036854775807, -9223372036854775808]"), OCI_MANIFEST)
    parse_manifest(inside(b"[" * 31 + b"]" * 31), OCI_MANIFEST)


@pytest.mark.parametrize(
    "content", [b"[" * MAX_MANIFEST_BYTES, b"[]," * (MAX_MANIFEST_BYTES // 3), b"[" + b"{}," * 49_000 + b"0]"]
)
def test_hostile_bytes_cost_little(content: bytes) -> None:
    tracemalloc.start()
    began = monotonic()
    reason(content)
    elapsed, peak = monotonic() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 1024 * 1024
    assert elapsed < 5


def test_the_largest_facts_still_fit_one_command() -> None:
    layers = [{"digest": f"sha512:{number:0128x}", "size": 1} for number in range(MAX_DESCRIPTORS)]
    annotations = {f"{number:04}": "x" for number in range(MAX_ANNOTATIONS_BYTES // 15)}
    fields = image(layers=layers, subject=descriptor(9), annotations=annotations)
    content = json.dumps(fields).encode()
    facts = parse_manifest(content, OCI_MANIFEST)
    assert (len(facts.blobs), len(facts.annotations)) == (MAX_DESCRIPTORS + 1, len(annotations))
    put = PutManifest(RepositoryName("r"), digest(1), len(content), content, facts, (), None, sparse=False)
    for command in split_manifest(put):
        assert decode_command(encode_command(command)) == command


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.sampled_from(KNOWN), st.sampled_from([image(), index(), artifact()]), st.data())
def test_a_field_replaced_by_anything_is_read_or_refused(media_type: str, fields: Json, data: st.DataObject) -> None:
    names = [*fields, "subject", "annotations", "artifactType", "mediaType"]
    changed = {**fields, data.draw(st.sampled_from(names)): data.draw(JSON)}
    try:
        facts = read(changed, media_type)
    except InvalidManifest:
        return
    put = PutManifest(RepositoryName("r"), digest(1), 1, None, facts, (), None, sparse=False)
    assert decode_command(encode_command(put)) == put


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from(KNOWN))
def test_random_bytes_are_read_or_refused(content: bytes, media_type: str) -> None:
    with suppress(InvalidManifest):
        parse_manifest(content, media_type)
