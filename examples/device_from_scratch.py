"""A device without multispin: Python's standard library and what docs/protocol.md says, nothing else.

    multispin serve --web                                             # in another terminal
    python examples/device_from_scratch.py http://127.0.0.1:8765 "Count from one to twenty."

Take it as the beginning of a client in your own language. It drafts whatever followed the last time that the newest
token stood in the text; put your model there. A credential goes into MULTISPIN_CREDENTIAL. It speaks `greedy` over
http, does not come back after a lost connection, and leaves the noise, TLS and fragments of frames to you.
"""

import base64
import json
import os
import socket
import struct
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, BinaryIO

VERSION, HELLO, WELCOME, OPEN, GRANT, DRAFT, VERDICT, TAIL, CLOSE, ERROR = 3, 1, 2, 3, 4, 5, 6, 7, 9, 10
WINDOW, CHUNK, COMMIT = 13, 14, 15
MAX_TOKENS = 64


def packed(value: Any) -> bytes:
    """MessagePack of what a device sends."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, int):  # in the shortest form; a device has no negative numbers to send
        for most, mark, form in ((2**7, b"", "B"), (2**8, b"\xcc", "B"), (2**16, b"\xcd", "H"), (2**32, b"\xce", "I")):
            if value < most:
                return mark + struct.pack(">" + form, value)
        return b"\xcf" + struct.pack(">Q", value)
    if isinstance(value, list):
        head = bytes([0x90 | len(value)]) if len(value) < 16 else b"\xdc" + struct.pack(">H", len(value))
        return head + b"".join(map(packed, value))
    raw, marks = (value.encode(), b"\xd9\xda") if isinstance(value, str) else (value, b"\xc4\xc5")
    if isinstance(value, str) and len(raw) < 32:
        return bytes([0xA0 | len(raw)]) + raw
    return marks[:1] + bytes([len(raw)]) + raw if len(raw) < 256 else marks[1:] + struct.pack(">H", len(raw)) + raw


def unpacked(raw: bytes) -> Any:
    """The value that a frame of the edge holds."""

    def take(at: int, size: int) -> tuple[bytes, int]:
        return raw[at : at + size], at + size

    def array(at: int, count: int) -> tuple[list[Any], int]:
        values = []
        for _ in range(count):
            value, at = read(at)
            values.append(value)
        return values, at

    def read(at: int) -> tuple[Any, int]:
        mark, at = raw[at], at + 1
        if mark < 0x80 or mark >= 0xE0:
            return mark - 256 * (mark >= 0xE0), at
        if 0x90 <= mark < 0xA0:
            return array(at, mark & 15)
        if 0xA0 <= mark < 0xC0:
            text, at = take(at, mark & 31)
            return text.decode(), at
        if mark in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[mark], at
        form = {0xCA: "f", 0xCB: "d", 0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q", 0xD0: "b", 0xD1: "h", 0xD2: "i"}
        form |= {0xD3: "q", 0xC4: "B", 0xC5: "H", 0xC6: "I", 0xD9: "B", 0xDA: "H", 0xDB: "I", 0xDC: "H", 0xDD: "I"}
        number, at = take(at, struct.calcsize(">" + form[mark]))
        (value,) = struct.unpack(">" + form[mark], number)
        if mark in (0xDC, 0xDD):
            return array(at, value)
        if mark in (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB):
            content, at = take(at, value)
            return (content.decode() if mark >= 0xD9 else content), at
        return value, at

    return read(0)[0]


class Link:
    """A WebSocket of binary frames."""

    def __init__(self, edge: str) -> None:
        address = urllib.parse.urlsplit(edge)
        assert address.hostname is not None
        self._socket = socket.create_connection((address.hostname, address.port or 80))
        self._file: BinaryIO = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {address.path.rstrip('/')}/v1/session HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        status = self._file.readline().decode().strip()
        if " 101 " not in status + " ":
            raise SystemExit(f"{edge} opens no WebSocket: {status}")
        while self._file.readline() != b"\r\n":
            pass

    def send(self, message: list[Any], kind: int = 2) -> None:
        """Send one message."""
        self._frame(packed(message), kind)

    def _frame(self, content: bytes, kind: int) -> None:
        size = len(content)
        head = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
        if size >= 2**16:
            head = b"\xff" + struct.pack(">Q", size)
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(content))
        self._socket.sendall(bytes([0x80 | kind]) + head + mask + masked)

    def messages(self) -> Iterator[list[Any]]:
        """What the edge sends, until it closes."""
        while head := self._file.read(2):
            kind, size = head[0] & 15, head[1] & 127
            if size >= 126:
                form = ">H" if size == 126 else ">Q"
                (size,) = struct.unpack(form, self._file.read(struct.calcsize(form)))
            content = self._file.read(size)
            if kind == 8:
                return
            if kind == 9:
                self._frame(content, 10)
            if kind == 2:
                yield unpacked(content)


class Device:
    """What a device knows: the text, and in a stream its chain of drafted tokens behind it."""

    def __init__(self, link: Link, prompt: list[int], stop_ids: list[int], vocabulary_size: int) -> None:
        self.link, self.text, self.stop_ids = link, list(prompt), stop_ids
        self.bits = max(1, (vocabulary_size - 1).bit_length())
        self.end = len(prompt) + MAX_TOKENS
        self.draft: list[int] = []  # the answer to the last grant
        self.chain: list[int] = []
        self.epoch, self.window, self.per_frame = 0, 0, 0

    def ids_as_bytes(self, ids: list[int]) -> bytes:
        """Packed ids: one big-endian bit string, padded with zeros to whole bytes."""
        padding = -self.bits * len(ids) % 8
        number = 0
        for each in ids:
            number = number << self.bits | each
        return (number << padding).to_bytes((self.bits * len(ids) + padding) // 8, "big")

    def ids_of(self, raw: bytes, count: int) -> list[int]:
        """The inverse of `ids_as_bytes`."""
        number = int.from_bytes(raw, "big") >> (8 * len(raw) - self.bits * count)
        return [number >> self.bits * place & (1 << self.bits) - 1 for place in reversed(range(count))]

    def open(self, session: int, seed: int) -> None:
        """Ask for a text at temperature 0."""
        prompt = self.ids_as_bytes(self.text)
        self.link.send([OPEN, session, prompt, len(self.text), MAX_TOKENS, 0.0, 0, 1.0, seed, self.stop_ids])

    def guess(self, text: list[int], count: int) -> list[int]:
        """Up to so many next tokens. Your model goes here."""
        places = [place for place in range(len(text) - 1) if text[place] == text[-1]]
        return text[places[-1] + 1 : places[-1] + 1 + count] if places else []

    def take(self, message: list[Any]) -> str:
        """Do what a message asks for; returns the finish that it names, or nothing."""
        kind, *fields = message
        if kind == ERROR:
            raise SystemExit(f"the edge says {fields[0]}: {fields[1]}")
        if kind == GRANT:
            self.answer(fields)
        elif kind == VERDICT:
            _, _, _, accepted, token, finish, grant = fields[:7]
            self.text += [*self.draft[:accepted], token]
            if grant:
                self.answer(grant[1:])
            return str(finish)
        elif kind == TAIL:
            _, base, ids, count, finish, grant = fields[:6]
            self.text[base:] = self.ids_of(ids, count)
            if grant:
                self.answer(grant[1:])
            return str(finish)
        elif kind == WINDOW:
            self.epoch, self.window, self.per_frame = max(1, self.epoch), fields[1], fields[2]
            self.draft_on()
        elif kind == COMMIT:
            return self.commit(*fields[:6])
        return ""

    def answer(self, grant: list[Any]) -> None:
        """Draft for a grant."""
        session, number, length = grant[:3]
        if length:
            self.draft = self.guess(self.text, length)
            ids = self.ids_as_bytes(self.draft)
            self.link.send([DRAFT, session, number, len(self.text), len(self.draft), ids, 1])

    def commit(self, base: int, epoch: int, verified: int, accepted: int, ids: list[int], finish: str) -> str:
        """Let the text grow, and see whether the chain says the same."""
        if base >= len(self.text):
            new = [*self.chain[: accepted if epoch == self.epoch else 0], *ids]
            self.text += new
            both = min(len(new), len(self.chain))
            if self.chain[:both] == new[:both]:
                self.chain = self.chain[both:]
            else:
                self.chain, self.epoch = [], self.epoch + 1
        if not finish:
            self.draft_on()
        return finish

    def draft_on(self) -> None:
        """Draft as far ahead of the text as the window allows, and send it."""
        while len(self.chain) < self.window and not (self.chain and self.chain[-1] in self.stop_ids):
            ahead = [*self.text, *self.chain]
            most = min(self.window - len(self.chain), self.per_frame, self.end - 1 - len(ahead))
            ids = self.guess(ahead, most) if most > 0 else []
            stop = next((place for place, each in enumerate(ids) if each in self.stop_ids), len(ids))
            ids = ids[: stop + 1]
            if not ids:
                return
            self.link.send([CHUNK, self.epoch, len(ahead), len(ids), self.ids_as_bytes(ids), 1])
            self.chain += ids


def main(edge: str, question: str) -> None:
    """Have one question answered."""
    credential = os.environ.get("MULTISPIN_CREDENTIAL", "")

    def ask(path: str, body: Any = None) -> bytes:
        data = json.dumps(body).encode() if body else None
        asked = urllib.request.Request(edge + path, data, {"Authorization": f"Bearer {credential}"})
        with urllib.request.urlopen(asked) as answer:
            return bytes(answer.read())

    about, tokens = json.loads(ask("/device/about")), ask("/device/tokens")
    prompt = json.loads(ask("/device/prompt", {"messages": [{"role": "user", "content": question}]}))["ids"]
    pieces, at = [], 0
    while at < len(tokens):
        size = int.from_bytes(tokens[at : at + 2], "big")
        pieces.append(tokens[at + 2 : at + 2 + size])
        at += 2 + size

    link = Link(edge)
    link.send([HELLO, VERSION, about["fingerprint"], "from scratch", "copies", True, [0.001, 3.0], credential])
    incoming = link.messages()
    kind, *fields = next(incoming)
    if kind != WELCOME:
        raise SystemExit(f"the edge says {fields[0]}: {fields[1]}")
    session, _, seed, vocabulary_size = fields[:4]
    device = Device(link, prompt, about["stop_ids"], vocabulary_size)
    device.open(session, seed)
    finish = next((finish for message in incoming if (finish := device.take(message))), "")
    if not finish:
        raise SystemExit("the connection broke in the middle of the text")
    link.send([CLOSE, session])
    sys.stdout.write(b"".join(pieces[each] for each in device.text[len(prompt) :]).decode(errors="replace") + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[1].startswith("http://"):
        raise SystemExit("usage: python examples/device_from_scratch.py http://HOST:PORT PROMPT")
    main(sys.argv[1].rstrip("/"), sys.argv[2])
