#!/usr/bin/env bash
# moto 5.2.5 (client: boto3 1.44.8): the S3 server reads the whole object for a range of one byte.
#
# get_object answers with FakeKey.value (moto/s3/models.py), which reads the object's buffer from its start to its end; only then does
# _handle_range_header (moto/s3/responses.py) cut the range out of it. So a request for one byte takes longer the larger the object is.
# Medians of 15 requests, client and server in one process on two busy cores; the range over five runs. Seen:
#
#   object   the server reads   GET of 1 byte   HEAD
#   1 MB     1048576 bytes      4 to 14 ms      4 to 7 ms
#   16 MB    16777216 bytes     6 to 12 ms      3 to 8 ms
#   64 MB    67108864 bytes     44 to 186 ms    4 to 11 ms
#
# 64 MB took 6 to 20 times as long as 1 MB. HEAD, which reads nothing of the object, is what a request costs by itself: up to 16 MB
# a range costs little more.
#
# So moto shows that a reader of small ranges of large objects (shards, Parquet, Zarr, MP4) works and how many requests it makes, not how
# fast it is: each range is served at the cost of the whole object, which a real store need not pay.
#
# Exits with 0 while this is so, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "moto[server]==5.2.5" boto3==1.44.8
cat > "$work/try.py" <<'PYTHON'
import importlib.metadata
import inspect
import logging
import statistics
import sys
import time

import boto3
from moto.s3.models import FakeKey
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

SIZES, TIMES = (1, 16, 64), 15  # MB
whole = FakeKey.value
read = []


def counted(key):
    content = whole.fget(key)
    read.append(len(content))
    return content


def timed(request, **given):
    start = time.perf_counter()
    answer = request(Bucket="clips", **given)
    body = answer["Body"].read() if "Body" in answer else b""
    return 1000 * (time.perf_counter() - start), body


logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs each request
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
access = {"region_name": "us-east-1", "aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **access)
client.create_bucket(Bucket="clips")
for size in SIZES:
    client.put_object(Bucket="clips", Key=str(size), Body=bytes(range(256)) * (size << 12))

FakeKey.value = property(counted, whole.fset)
took = {(size, kind): [] for size in SIZES for kind in ("range", "head")}
for at in range(TIMES + 1):  # sizes in turn, so that what else the machine does falls on all of them
    for size in SIZES:
        read.clear()
        range_took, body = timed(client.get_object, Key=str(size), Range=f"bytes={at}-{at}")
        assert body == bytes([at]), body
        head_took, _ = timed(client.head_object, Key=str(size))
        if read != [size << 20]:  # all of it once for GET, nothing for HEAD
            sys.exit(f"CHANGED: the server read {read} bytes for one byte of {size << 20}")
        if at:  # the first opens the connection
            took[size, "range"].append(range_took)
            took[size, "head"].append(head_took)
server.stop()
print("moto", importlib.metadata.version("moto"), "with boto3", boto3.__version__)
for size in SIZES:
    middle = {kind: statistics.median(took[size, kind]) for kind in ("range", "head")}
    print(
        f"{size:3} MB: GET of 1 byte {middle['range']:6.1f} ms (read: {size << 20} bytes), HEAD {middle['head']:5.1f} ms"
    )
ratio = statistics.median(took[64, "range"]) / statistics.median(took[1, "range"])
print(f"64 MB takes {ratio:.1f} times as long as 1 MB")
text = inspect.getsource(whole.fget)
named = "_value_buffer.read()" in text and "key.value" in inspect.getsource(S3Response.get_object)
cut = "response_content[begin : end + 1]" in inspect.getsource(S3Response._handle_range_header)
if not (named and cut):
    print("CHANGED: the code is another")
sys.exit(ratio < 4 or not named or not cut)
PYTHON
"$work/venv/bin/python" "$work/try.py"
echo "as described: one byte costs the whole object"
