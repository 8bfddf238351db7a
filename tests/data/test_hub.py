"""Being without network is noticed at once."""

import socket

import pytest
from huggingface_hub import constants

from cloze.data.hub import offline


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    assert not offline()
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    assert offline()
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "proxy"})
    assert not offline()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert offline()
