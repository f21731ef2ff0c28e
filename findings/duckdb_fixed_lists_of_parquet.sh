#!/usr/bin/env bash
# DuckDB 2.0.1 reads a fixed-size list of Parquet as a list of any length, so its functions for vectors refuse the column.
#
# Embeddings are written by pyarrow as fixed_size_list<float>[d], which the file says in its Arrow schema; pandas, polars and pyarrow
# give d values back. DuckDB has a type for that, FLOAT[d], which array_cosine_similarity, array_inner_product and the VSS index need,
# and does not use it: the column is FLOAT[]. Of pyarrow 26.0.1's file of 3 vectors of 4 values, seen:
#
#   reader                                         type of the column
#   pyarrow                                        fixed_size_list<element: float>[4]
#   duckdb, from the file                          FLOAT[]
#   duckdb, from the pyarrow table in memory       FLOAT[4]
#   array_cosine_similarity(vector, ?::FLOAT[4])   BinderException, from the file; 1.0 from the table
#   array_cosine_similarity(vector::FLOAT[4], ?::FLOAT[4])   1.0 from both
#
# So a query that was tried on a table in memory fails on the data set on disk until each use of the column is cast.
#
# Exits with 0 while this is so, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check duckdb==2.0.1 pyarrow==26.0.1
cat > "$work/try.py" <<'PYTHON'
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

path = sys.argv[1]
vectors = [[1.0, 0.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
held = pa.table({"vector": pa.array(vectors, pa.list_(pa.float32(), 4))})
pq.write_table(held, path)
print("pyarrow", pa.__version__, "reads", pq.read_schema(path).field("vector").type)


def kind(source):
    return duckdb.execute(f"select typeof(vector) from {source} limit 1").fetchone()[0]


def nearest(source, column):
    try:
        query = f"select max(array_cosine_similarity({column}, ?::FLOAT[4])) from {source}"
        return duckdb.execute(query, [vectors[0]]).fetchone()[0]
    except duckdb.BinderException:
        return "BinderException"


seen = {}
for name, source in (("file", f"'{path}'"), ("table", "held")):
    seen[name] = (kind(source), nearest(source, "vector"), nearest(source, "vector::FLOAT[4]"))
    print("duckdb", duckdb.__version__, "from the", name, *seen[name])
sys.exit(seen != {"file": ("FLOAT[]", "BinderException", 1.0), "table": ("FLOAT[4]", 1.0, 1.0)})
PYTHON
"$work/venv/bin/python" "$work/try.py" "$work/vectors.parquet" && echo "as described: the length is lost on the way through the file"
