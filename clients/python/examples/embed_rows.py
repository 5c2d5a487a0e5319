"""Embeds the rows of a file, or of a folder of them, as a job on the service's own Ray.

Texts come in as Parquet, as JSON lines, or as plain text with one in each line; the same rows go
out as Parquet, in order, with a column of vectors (float32). From this repository's folder, while
the service runs on this machine:

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 \
        --working-dir clients/python -- \
        python examples/embed_rows.py --input /data/rows.jsonl --output /data/embedded

(Ray asks for the token in ~/.ray/auth_token, but shows it only where it is told to.) The job's
paths are those of the machine it runs on; the output's folder has to be a new one. Without
`--input` it makes rows of its own, to see that all is well.
"""

import argparse
import time
from pathlib import Path

import ray

from embedserve_client.ray import embed_dataset

#: The service's replicas may hold all CPUs; reading and writing must not wait for them.
_NO_CPU = {"num_cpus": 0.0}


def main() -> None:
    """Reads the command line and does what it says."""
    asked = _arguments()
    ray.init(address="auto", log_to_driver=False)
    begun_s = time.monotonic()
    rows = _rows(asked.input, asked.rows, asked.column)
    embedded = embed_dataset(
        rows,
        asked.column,
        into=asked.into,
        app=asked.app,
        input_type=asked.input_type,
        batch_size=asked.batch_size,
        concurrency=asked.concurrency,
        timeout_s=asked.timeout,
    )
    embedded.write_parquet(asked.output, mode=ray.data.SaveMode.ERROR, ray_remote_args=_NO_CPU)
    written = ray.data.read_parquet(asked.output, ray_remote_args=_NO_CPU).count()
    print(f"{written} rows in {asked.output} after {time.monotonic() - begun_s:.1f} s")


def _rows(source: str | None, rows: int, column: str) -> ray.data.Dataset:
    if source is None:
        made = [{"row": i, column: f"Row {i} of {rows}, made to be embedded."} for i in range(rows)]
        return ray.data.from_items(made)
    kinds = {Path(source).suffix, *(file.suffix for file in Path(source).glob("*"))}
    if kinds & {".jsonl", ".json"}:
        return ray.data.read_json(source, lines=True, ray_remote_args=_NO_CPU)
    if ".txt" in kinds:
        lines = ray.data.read_text(source, ray_remote_args=_NO_CPU)
        return lines if column == "text" else lines.rename_columns({"text": column}, num_cpus=0)
    return ray.data.read_parquet(source, ray_remote_args=_NO_CPU)


def _arguments() -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help="a .parquet, .jsonl or .txt file, or a folder of them")
    parser.add_argument("--rows", type=int, default=1000, help="to make where there is no --input")
    parser.add_argument("--column", default="text", help="holds the texts")
    parser.add_argument("--into", default="embedding", help="the column for the vectors")
    parser.add_argument("--output", required=True, help="a folder, for Parquet files")
    parser.add_argument("--app", default="embedserve", help="the application's name in Serve")
    parser.add_argument("--input-type", help="query, document, or another prompt of the model's")
    parser.add_argument("--batch-size", type=int, default=256, help="texts in one call")
    parser.add_argument("--concurrency", type=int, default=4, help="calls under way at a time")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each call")
    return parser.parse_args()


if __name__ == "__main__":
    main()
