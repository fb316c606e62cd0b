"""No test talks to anything but this machine. `conftest.py` loads this for the tests themselves; Python loads it by its
name in every process they start, since this folder stands in PYTHONPATH then.

An audit hook sees the connections of all Python code, and nothing can take it away again. It does not see those of
compiled libraries.
"""

import sys

_WATCHED = {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"}
_LOOKED_UP = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_HERE = {"localhost", "::1", "", None}


def _is_here(host: object) -> bool:
    host = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    return host in _HERE or (isinstance(host, str) and host.startswith("127."))


def _refuse(event: str, arguments: tuple) -> None:
    if event in _WATCHED:
        address = arguments[1]
        if not isinstance(address, tuple) or (_is_here(address[0]) and address[0] != ""):
            return  # a text is the address of an AF_UNIX socket; "" would be every network of the machine
    elif event in _LOOKED_UP:
        address = arguments[0]
        if _is_here(address):
            return
    else:
        return
    raise PermissionError(f"{event} of {address!r}: tests stay on this machine")


sys.addaudithook(_refuse)
