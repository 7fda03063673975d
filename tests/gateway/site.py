"""The API over real HTTP, in front of a real edge with a tiny model: what its tests share."""

import json
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from tests.steady_beliefs import AtOnce, SteadyBeliefs

from multispin.control import Verification
from multispin.device import DeviceClient
from multispin.edge import Access, EdgeServer, listening
from multispin.edge.door import Door
from multispin.edge.paced import PacedEngine
from multispin.gateway import Gateway, SessionPool, guard, local_sessions
from multispin.models import (
    ModelBatchDrafter,
    ModelDrafter,
    Verifier,
    decode_alone,
    load_grammars,
    load_model,
    load_tokenizer,
)
from multispin.models.packable import PackedModel
from multispin.passes import Controller, ControllerSettings, Limits, Passes
from multispin.protocol import PROTOCOL_VERSION, SESSION_PATH, Hello, Profile
from multispin.speculation import SamplingParams

MAX_LENGTH = 256


@asynccontextmanager
async def api(
    folder, credential="", slots=4, tokens=None, mode="rounds", pass_s=0.0, edge=False, origins=(), access=None,
    max_share=1.0, **limits,
):  # fmt: skip
    tokenizer = load_tokenizer(folder)
    drafter = ModelBatchDrafter(PackedModel.of(load_model(folder)), slots, MAX_LENGTH, tokenizer.size)
    verifier = Verifier(load_model(folder), slots, MAX_LENGTH)
    settings = ControllerSettings("heterogeneous", 20e3, 9, mode=mode, edge_drafts=edge or mode == "edge")
    # Where a test needs drafts, passes take their time, and what is decided depends on no clock.
    paced = SteadyBeliefs(settings, pass_s) if pass_s else None
    passes = Passes(
        PacedEngine(verifier, Verification(pass_s, 0.0, 0.0)) if pass_s else verifier,
        Controller(settings, paced),
        tokenizer.fingerprint,
        Limits(max_share=max_share, **limits),
        edge_drafter=drafter if edge or mode == "edge" else None,
        grammars=load_grammars(tokenizer),
    )
    access = access or Access(credential, tokens, Door(allowed_origins=origins))
    server = EdgeServer(passes, access=access, planning=AtOnce() if pass_s else None)
    app = server.application()
    source = local_sessions(server, tokenizer.fingerprint, tokenizer.decode, 8, MAX_LENGTH)
    gateway = Gateway(source, tokenizer, "tiny", 7, passes.grammars, max_share)
    gateway.add_routes(app, guard(server.access), server.access.door)
    async with listening(app, port=0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        http.passes, http.edge, http.application, http.url = passes, server, app, f"ws://127.0.0.1:{port}{SESSION_PATH}"
        yield http


@asynccontextmanager
async def device_of(folder, far):
    """A device with the same model as its drafter, that serves clients of its own from the edge."""
    tokenizer, grammars = load_tokenizer(folder), load_grammars(load_tokenizer(folder))
    hello = Hello(PROTOCOL_VERSION, tokenizer.fingerprint, "laptop", "same", True, Profile(0.001, 5.0))

    def make(on_progress):
        drafter = ModelDrafter(PackedModel.of(load_model(folder)), MAX_LENGTH, tokenizer.size, grammars)
        return DeviceClient(far.url, hello, drafter, on_progress=on_progress, decode=tokenizer.decode)

    pool, app = SessionPool(make, 2, MAX_LENGTH), web.Application()
    Gateway(pool, tokenizer, "tiny", 0, grammars).add_routes(app, guard(Access()))
    async with listening(app, port=0) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        http.pool = pool
        yield http
    pool.close()


async def post(http, path, document, **options):
    async with http.post(path, json=document, **options) as answer:
        return answer.status, await answer.json()


async def events(http, path, document):
    """The documents of a stream; the last event must be [DONE]."""
    async with http.post(path, json=document) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        lines = (await answer.text()).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def text_of(http, body):
    if not body["stream"]:
        status, document = await post(http, "/v1/completions", body)
        assert status == 200, document
        return document["choices"][0]["text"]
    return "".join(each["choices"][0]["text"] for each in await events(http, "/v1/completions", body))


def alone(folder, prompt, count, params=None):
    ids = load_tokenizer(folder).encode(prompt)
    params = params or SamplingParams()
    return load_tokenizer(folder).decode(decode_alone(load_model(folder), ids, params, count))


def schema(inner):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": inner}}
