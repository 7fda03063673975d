"""TLS with a private authority, between a real edge and a real device."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest
import trustme

from multispin.device import DeviceClient, EdgeAwayError, Patience, UntrustedError, WebSocketLink, trusting
from multispin.edge import Certificate
from multispin.errors import InputError
from multispin.protocol import SESSION_PATH, Request
from multispin.speculation import NoDrafter, SamplingParams

REQUEST = Request((5, 6, 7), SamplingParams(), 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Certificate and key of 127.0.0.1, the authority that signed it, and another one."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    paths = {name: folder / f"{name}.pem" for name in ("certificate", "key", "both", "authority", "other", "other_key")}
    leaf.cert_chain_pems[0].write_to_path(paths["certificate"])
    leaf.private_key_pem.write_to_path(paths["key"])
    leaf.private_key_and_cert_chain_pem.write_to_path(paths["both"])
    authority.cert_pem.write_to_path(paths["authority"])
    other = trustme.CA()
    other.cert_pem.write_to_path(paths["other"])
    other.issue_cert("127.0.0.1").private_key_pem.write_to_path(paths["other_key"])
    return paths


async def text_of(site, context):
    url = f"wss://127.0.0.1:{site.port}{SESSION_PATH}"
    client = DeviceClient(
        url, site.hello(drafts=False), NoDrafter(), link=WebSocketLink(context), patience=Patience(0.2, 0.2)
    )
    try:
        return await client.generate(REQUEST)
    finally:
        client.close()


@pytest.mark.parametrize("together", [False, True])
def test_a_device_trusts_the_authority_that_it_is_told(stub_site, run, files, together):
    certificate = Certificate(files["both"]) if together else Certificate(files["certificate"], files["key"])

    async def scenario():
        async with stub_site(listen={"tls": certificate.context}) as site:
            assert await text_of(site, trusting(files["authority"])) == [1] * 8
            for context in (None, trusting(files["other"])):
                with pytest.raises(
                    UntrustedError, match=r"certificate .* is not trusted: .*; give the authority that signed it$"
                ):
                    await text_of(site, context)
            async with aiohttp.ClientSession() as http:
                answer = await http.get(f"https://127.0.0.1:{site.port}/healthz", ssl=trusting(files["authority"]))
                return answer.status

    assert run(scenario()) == 200


def test_plain_and_tls_do_not_meet_by_accident(stub_site, run, files):
    async def scenario():
        async with stub_site() as site:
            with pytest.raises(EdgeAwayError, match="speaks no TLS"):
                await text_of(site, trusting(files["authority"]))
        async with stub_site(listen={"tls": Certificate(files["both"]).context}) as site:
            client = site.client(NoDrafter(), patience=Patience(0.2, 0.2))
            with pytest.raises(EdgeAwayError):
                await client.generate(REQUEST)
            client.close()

    run(scenario())


def test_files_that_are_no_certificate_and_key_are_refused(files, tmp_path):
    encrypted, nothing = tmp_path / "encrypted.pem", tmp_path / "nothing.pem"
    nothing.write_text("nothing")
    large = tmp_path / "large.pem"
    large.write_bytes(bytes(2**20 + 1))
    subprocess.run(
        ["openssl", "pkey", "-in", files["key"], "-aes256", "-passout", "pass:secret", "-out", encrypted], check=True
    )
    for certificate, key, said in (
        (files["certificate"], files["other_key"], "does not fit the certificate"),
        (files["certificate"], encrypted, "is encrypted"),
        (files["certificate"], None, "not a certificate and its key in PEM format"),
        (nothing, files["key"], "not a certificate and its key in PEM format"),
        (tmp_path / "nowhere.pem", files["key"], "cannot be read: No such file"),
        (tmp_path, files["key"], "is not a file"),
        (Path("/dev/zero"), files["key"], "is not a file"),
        (files["certificate"], Path("/dev/zero"), "is not a file"),
        (large, files["key"], "is longer than"),
    ):
        with pytest.raises(InputError, match=said):
            Certificate(certificate, key)
    with pytest.raises(InputError, match="holds no certificate"):
        trusting(nothing)
    with pytest.raises(InputError, match="No such file"):
        trusting(tmp_path / "nowhere.pem")
    with pytest.raises(InputError, match="is not a file"):
        trusting(Path("/dev/zero"))


@pytest.mark.parametrize("broken", ["half of it", "its key is not there yet", "it cannot be opened"])
def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(stub_site, run, files, tmp_path, caplog, broken):
    authority, file = trustme.CA(), tmp_path / "both.pem"
    file.write_bytes(files["both"].read_bytes())
    certificate = Certificate(file)

    async def scenario():
        async with stub_site(listen={"tls": certificate.context}) as site:
            renewing = asyncio.create_task(certificate.renew(0.01))
            await asyncio.sleep(0.05)
            match broken:
                case "half of it":
                    file.write_text("half of it")
                case "its key is not there yet":
                    file.write_bytes(
                        files["key"].read_bytes() + authority.issue_cert("127.0.0.1").cert_chain_pems[0].bytes()
                    )
                case "it cannot be opened":
                    file.unlink()
            while "stays in use" not in caplog.text:
                await asyncio.sleep(0.01)
            assert await text_of(site, trusting(files["authority"])) == [1] * 8
            authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
            context = ssl.create_default_context()
            authority.configure_trust(context)
            async with asyncio.timeout(20):
                while True:
                    try:
                        text = await text_of(site, context)
                        break
                    except InputError:
                        await asyncio.sleep(0.05)
            renewing.cancel()
            return text

    assert run(scenario()) == [1] * 8
