import ssl
import subprocess
from pathlib import Path

import pytest

from node.config import Listen
from node.tls import TlsRefused, tls_context, tls_of
from tests.node.certificates import make_certificate


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    make_certificate(certificate, key)
    return certificate, key


def test_only_what_is_configured(files: tuple[Path, Path]) -> None:
    assert tls_of(Listen()) is None
    context = tls_of(Listen(tls_certificate=str(files[0]), tls_key=str(files[1])))
    assert context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_file_is_named(missing: int, files: tuple[Path, Path]) -> None:
    files[missing].unlink()
    with pytest.raises(TlsRefused, match=f"{files[missing]}: No such file"):
        tls_context(*files)


def test_a_key_of_another_certificate_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    make_certificate(tmp_path / "other.pem", files[1])
    with pytest.raises(TlsRefused, match=f"{files[0]} with tls_key {files[1]}: key values mismatch"):
        tls_context(*files)


def test_what_is_no_certificate_is_refused(files: tuple[Path, Path]) -> None:
    files[0].write_text("junk")
    with pytest.raises(TlsRefused, match=str(files[0])):
        tls_context(*files)


def test_a_passphrase_is_not_waited_for(files: tuple[Path, Path]) -> None:
    locked = files[1].with_name("locked.pem")
    command = ["openssl", "ec", "-in", str(files[1]), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(TlsRefused, match="encrypted"):
        tls_context(files[0], locked)
