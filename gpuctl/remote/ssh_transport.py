"""The SSH transport: paramiko's key exchange and login, our packets and channels.

Uses public names of paramiko and the protected ones that `check_paramiko` looks for; an unknown
paramiko is refused with a word instead of failing in the middle of a transfer.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import paramiko
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_OPEN_SUCCESS,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_NEWKEYS,
    MSG_REQUEST_FAILURE,
    MSG_REQUEST_SUCCESS,
)
from paramiko.message import Message
from paramiko.packet import Packetizer
from paramiko.ssh_exception import SSHException
from paramiko.transport import Transport

from gpuctl.errors import RemoteError
from gpuctl.remote.ssh_channel import Broken, CommandChannel, signal_code
from gpuctl.remote.ssh_packets import FastPacketizer

CIPHERS = (  # authenticated and in hardware first
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",  # no paramiko has it yet; taken as soon as one does
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
_MAJORS = (4, 5)
_KEX_SECONDS = 30.0  # how long new keys may take
_ROUND_TRIPS_KEPT = 8
_OPEN_REFUSED = {
    1: "it forbids another command on this connection",
    2: "it could not connect",
    3: "it knows no commands",
    4: "it has no room for another command on this connection",
}
_NEEDED: dict[type, tuple[str, ...]] = {
    Transport: (
        "_channel_handler_table",
        "_next_channel",
        "_parse_channel_open_failure",
        "_parse_channel_open_success",
        "_parse_newkeys",
        "_parse_request_failure",
        "_parse_request_success",
        "get_security_options",
    ),
    Packetizer: (
        "_trigger_rekey",
        "handshake_timed_out",
        "need_rekey",
        "read_all",
        "readline",
        "set_inbound_cipher",
        "set_outbound_cipher",
        "write_all",
    ),
}

# Else Python prints paramiko's own complaints, with traceback, beside ours.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


def check_paramiko(version: str = paramiko.__version__) -> None:
    """Refuse a paramiko that this was not built for.

    Raises:
        RemoteError: it lacks something, or is of another major version.
    """
    missing = [
        f"{owner.__name__}.{name}"
        for owner, names in _NEEDED.items()
        for name in names
        if not hasattr(owner, name)
    ]
    if int(version.split(".")[0]) not in _MAJORS or missing:
        lacks = f" (it lacks {', '.join(missing)})" if missing else ""
        raise RemoteError(
            f"paramiko {version} is not one that gpuctl knows{lacks}",
            next="Install one that it does: pip install 'paramiko>=4,<6'.",
        )


class SshTransport(Transport):  # type: ignore[misc]  # paramiko has no types
    """One SSH connection over a connected socket; the login is `gpuctl.remote.ssh_login`'s.

    Args:
        link: connected.
        host_key_types: ask for a host key of these types only; empty for any.
    """

    packetizer: FastPacketizer

    def __init__(self, link: socket.socket, *, host_key_types: Sequence[str] = ()) -> None:
        super().__init__(link, packetizer_class=FastPacketizer)
        options = self.get_security_options()
        options.ciphers = [name for name in CIPHERS if name in self._cipher_info]
        options.digests = [name for name in MACS if name in self._mac_info]
        if host_key_types:
            options.key_types = list(host_key_types)
        self.packetizer.deliver = self._deliver
        self.packetizer.adjust = self._adjust
        self.measured = threading.Event()  # a round trip was
        self._why: str | None = None
        self._deferred: list[bytes] = []  # what our own thread may not send while keys change
        self._pings: deque[float] = deque()
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS_KEPT)
        handlers: dict[int, Callable[[Message], None]] = {
            MSG_CHANNEL_OPEN_SUCCESS: self._on_opened,
            MSG_CHANNEL_OPEN_FAILURE: self._on_not_opened,
            MSG_NEWKEYS: self._on_new_keys,
            MSG_REQUEST_SUCCESS: self._on_pong,
            MSG_REQUEST_FAILURE: self._on_pong,
        }
        self._handler_table.update(handlers)

    # ------------------------------------------------------------------ channels

    def ask_channel(self) -> CommandChannel:
        """Ask for a channel; does not wait for the answer. Raises Broken."""
        with self.lock:
            number = self._next_channel()
            channel = CommandChannel(self, number)
            self._channels.put(number, channel)
            self.channels_seen[number] = True
        self.send_payload(channel.opening())
        return channel

    def send_payload(self, payload: bytes) -> None:
        """Send one SSH message. Raises Broken."""
        if threading.current_thread() is self and not self.clear_to_send.is_set():
            self._deferred.append(payload)  # waiting would wait for ourselves
            return
        with self._clear_to_send():
            self.packetizer.send_message(Message(payload))

    def send_data(self, channel: int, data: memoryview, packet: int) -> None:
        """Send data of a channel. Raises Broken."""
        size = self.packetizer.BATCH
        for start in range(0, len(data), size):
            with self._clear_to_send():
                self.packetizer.send_data(channel, data[start : start + size], packet)

    def forget(self, number: int) -> None:
        """Nothing more comes for the channel that we gave this number."""
        self._unlink_channel(number)

    # ------------------------------------------------------------------ health

    def keep_alive(self, every: float, silent: float) -> None:
        """Ask for a sign of life after ``every`` quiet seconds; break after ``silent`` ones."""
        self.packetizer.silent_seconds = silent
        self.packetizer.set_keepalive(every, self.ping)

    def ping(self) -> None:
        """Ask for a sign of life and measure how long it takes; does not wait."""
        if self.in_kex or not self.clear_to_send.is_set():
            return  # the key exchange is one
        self._pings.append(time.monotonic())
        name = b"keepalive@openssh.com"
        with suppress(Broken):  # everybody who uses the link is told already
            self.send_payload(b"\x50" + len(name).to_bytes(4, "big") + name + b"\x01")

    @property
    def round_trip(self) -> float | None:
        """The shortest of the last measured round trips, in seconds."""
        return min(self._round_trips, default=None)

    @property
    def well_measured(self) -> bool:
        """Whether `round_trip` rests on more than the login, when servers still gather packets."""
        return len(self._round_trips) >= 3

    def how_it_broke(self) -> str:
        """Why the link is gone, in words."""
        if self._why is None and self.saved_exception is not None:
            self._why = str(self.saved_exception) or None
        return self._why or "the machine closed the link"

    def break_off(self, why: str) -> None:
        """End the link because of a fault."""
        self._why = self._why or why
        self.close()

    # ------------------------------------------------------------------ inside

    @contextmanager
    def _clear_to_send(self) -> Iterator[None]:
        """Hold off new keys while sending, and wait while they are made."""
        deadline = time.monotonic() + _KEX_SECONDS
        while True:
            self.clear_to_send.wait(0.1)
            if not self.active:
                raise Broken(self.how_it_broke())
            with self.clear_to_send_lock:
                if self.clear_to_send.is_set():
                    try:
                        yield
                    except EOFError as error:
                        self.break_off(str(error))
                        raise Broken(self.how_it_broke()) from error
                    return
            if time.monotonic() > deadline:
                self.break_off(f"it did not agree on new keys within {_KEX_SECONDS:g} s")

    def _deliver(self, number: int, data: memoryview) -> bool:
        channel = self._channels.get(number)
        if not isinstance(channel, CommandChannel) or self._expected_packet:
            return False
        _obey(channel.on_data(data))
        return True

    def _adjust(self, number: int, more: int) -> bool:
        channel = self._channels.get(number)
        if not isinstance(channel, CommandChannel) or self._expected_packet:
            return False
        channel.on_window(more)
        return True

    def _on_opened(self, message: Message) -> None:
        number, remote = message.get_int(), message.get_int()
        channel = self._channels.get(number)
        if isinstance(channel, CommandChannel):
            window, packet = message.get_int(), message.get_int()
            if not packet:
                raise SSHException("it opened a channel that takes no data")
            channel._set_remote_channel(remote, window, packet)
        else:
            self._parse_channel_open_success(_again(message))

    def _on_not_opened(self, message: Message) -> None:
        number, reason = message.get_int(), message.get_int()
        channel = self._channels.get(number)
        if isinstance(channel, CommandChannel):
            channel.on_refused(_OPEN_REFUSED.get(reason, f"reason {reason}"))
            self.forget(number)
        else:
            self._parse_channel_open_failure(_again(message))

    def _on_new_keys(self, message: Message) -> None:
        self._parse_newkeys(message)
        waiting, self._deferred = self._deferred, []
        for payload in waiting:
            self.send_payload(payload)

    def _on_pong(self, message: Message) -> None:
        if self._pings:
            self._round_trips.append(time.monotonic() - self._pings.popleft())
            self.measured.set()
        else:
            self._parse_request_failure(message)

    _channel_handler_table = {  # noqa: RUF012  # shadows paramiko's own
        number: (lambda channel, message, number=number: _dispatch(number, channel, message))
        for number in Transport._channel_handler_table
    }


def _dispatch(number: int, channel: Any, message: Message) -> None:
    """Hand a message to our channel, or to paramiko's (SFTP uses one)."""
    if not isinstance(channel, CommandChannel):
        Transport._channel_handler_table[number](channel, message)
    else:
        _HANDLERS[number](channel, message)


def _on_data(channel: CommandChannel, message: Message) -> None:
    _obey(channel.on_data(message.get_binary()))


def _on_stderr(channel: CommandChannel, message: Message) -> None:
    if message.get_int() == 1:
        _obey(channel.on_stderr(message.get_binary()))


def _on_request(channel: CommandChannel, message: Message) -> None:
    kind = message.get_binary()
    message.get_boolean()
    if kind == b"exit-status":
        channel.on_exit(message.get_int() & 0xFF)
    elif kind == b"exit-signal":
        channel.on_exit(signal_code(message.get_binary().decode("ascii", "replace")))


_HANDLERS: dict[int, Callable[[CommandChannel, Message], None]] = {
    MSG_CHANNEL_SUCCESS: lambda _channel, _message: None,  # nobody waits for it
    MSG_CHANNEL_FAILURE: lambda channel, _: channel.on_refused("it starts no commands"),
    MSG_CHANNEL_DATA: _on_data,
    MSG_CHANNEL_EXTENDED_DATA: _on_stderr,
    MSG_CHANNEL_WINDOW_ADJUST: lambda channel, message: channel.on_window(message.get_int()),
    MSG_CHANNEL_REQUEST: _on_request,
    MSG_CHANNEL_EOF: lambda channel, _: channel.on_eof(),
    MSG_CHANNEL_CLOSE: lambda channel, _: channel.on_close(),
}


def _obey(allowed: bool) -> None:
    if not allowed:
        raise SSHException("it sent more than it was allowed to")


def _again(message: Message) -> Message:
    message.rewind()
    return message
