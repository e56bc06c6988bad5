"""The portable engine: llama.cpp's own OpenAI-compatible server, embedded by xllamacpp.

Run as `python -m shared.engine.portable --model FILE.gguf --port N`. It serves until it is sent
SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading

HTTP_THREADS = 128
"""Each open request holds one, so a load test at 64 leaves some for health and metrics."""
_EXIT_GRACE_S = 3.0


def main() -> int:
    """Serve until told to stop; 1 when the server cannot start."""
    args = _arguments()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    import xllamacpp

    try:
        server = xllamacpp.Server(_parameters(args))
    except Exception as error:
        print(f"E the server did not start: {error}", file=sys.stderr, flush=True)
        return 1
    if not server.listening_address.endswith(f":{args.port}"):
        print(f"E bound {server.listening_address}, not port {args.port}", file=sys.stderr)
        return 1
    while not stop.wait(3600):
        pass
    # Open streams can hold the server's destructor; a stop must end.
    threading.Timer(_EXIT_GRACE_S, os._exit, [0]).start()
    del server
    os._exit(0)


def _parameters(args: argparse.Namespace):  # type: ignore[no-untyped-def]  # xllamacpp has no types
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = args.model
    p.model_alias = {args.served_model_name}
    p.hostnames = [args.host]
    p.port = args.port
    p.reuse_port = False
    p.n_parallel = args.slots
    p.n_ctx = args.slots * args.max_model_len
    p.kv_unified = False  # each slot has its own share: a long request cannot starve the others
    p.n_threads_http = HTTP_THREADS
    p.endpoint_metrics = True
    p.endpoint_slots = True
    p.ui = False
    p.offline = True
    p.cache_ram_mib = 0  # a host-memory prompt cache would take up to 8 GiB
    p.fit_params = False  # the sizes above are meant; fitting loads the model twice
    p.verbosity = args.verbosity
    return p


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shared.engine.portable", description=__doc__)
    parser.add_argument("--model", required=True, help="a .gguf file")
    parser.add_argument("--served-model-name", default="model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=16, help="sequences decoded at once")
    parser.add_argument("--max-model-len", type=int, default=2048, help="tokens a slot")
    parser.add_argument("--verbosity", type=int, default=4, help="llama.cpp's, 4 logs the KV cache")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
