"""Whether the Hugging Face hub can be reached at all: its own client tries for a minute first."""

from __future__ import annotations

import socket
import urllib.request
from urllib.parse import urlsplit

from huggingface_hub import constants


def offline() -> bool:
    """True if the hub is switched off (HF_HUB_OFFLINE), or if without a proxy its address cannot be found."""
    if constants.HF_HUB_OFFLINE:
        return True
    if urllib.request.getproxies():  # names are then looked up elsewhere
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False
