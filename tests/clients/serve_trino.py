"""A Trino for whoever runs this and speaks to it himself.

Standard input: one line of JSON with `environment` and `files`, the configuration by its names below `etc`. Standard
output: one line, Trino's address. Invariant: Trino lives no longer than standard input is open.
"""

import json
import sys

from trino_server import TrinoServer


def main():
    wanted = json.loads(sys.stdin.readline())
    with TrinoServer(wanted["environment"], files=wanted["files"]) as trino:
        print(trino.url, flush=True)
        sys.stdin.read()


main()
