#!/usr/local/bin/python -IS
"""`probe healthz` or `probe readyz`: asks the `cfo-sync run` or `api` of this container. Exit code 0 for yes."""

import http.client
import os
import sys


def main(path: str) -> int:
    """The exit code; what it answered is printed."""
    for variable, default in (("CFO_SYNC_METRICS_PORT", 9108), ("CFO_SYNC_API_PORT", 8080)):
        connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get(variable) or default), timeout=4)
        try:
            connection.request("GET", f"/{path}")
            answer = connection.getresponse()
            print(answer.status, answer.read().decode(errors="replace").strip())
        except ConnectionRefusedError:
            continue  # the other command's port
        except (OSError, http.client.HTTPException) as error:
            print(error)
            return 1
        return 0 if answer.status == 200 else 1
    print("nothing listens")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
