"""Embeds a file or a directory of rows as a Ray job on the service's own cluster.

Input: Parquet, JSON lines, or text files with one text per line. Output: Parquet with the same
rows, in order, and a column of vectors (float32). Run it from the root of this repository while the
service runs on this machine:

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 \
        --working-dir clients/python -- \
        python examples/embed_rows.py --input /data/rows.jsonl --output /data/embedded

Ray needs the token in ~/.ray/auth_token and sends it only with RAY_AUTH_MODE=token. The paths are
those of the machine on which the job runs, and the output directory must not exist. Without
`--input`, the job embeds generated rows, as a test of the setup.
"""

import argparse
import time
from pathlib import Path

import ray

from embedserve_client.ray import embed_dataset

#: The replicas of the service may hold all CPUs, and reading and writing must not wait for them.
_NO_CPU = {"num_cpus": 0.0}


def main() -> None:
    """Runs the job."""
    arguments = _parse_arguments()
    ray.init(address="auto", log_to_driver=False)
    started_s = time.monotonic()
    rows = _read_rows(arguments.input, arguments.rows, arguments.column)
    embedded = embed_dataset(
        rows,
        arguments.column,
        output_column=arguments.output_column,
        app_name=arguments.app_name,
        input_type=arguments.input_type,
        batch_size=arguments.batch_size,
        concurrency=arguments.concurrency,
        timeout_s=arguments.timeout,
    )
    embedded.write_parquet(arguments.output, mode=ray.data.SaveMode.ERROR, ray_remote_args=_NO_CPU)
    written = ray.data.read_parquet(arguments.output, ray_remote_args=_NO_CPU).count()
    print(f"{written} rows in {arguments.output} after {time.monotonic() - started_s:.1f} s")


def _read_rows(path: str | None, generated_rows: int, column: str) -> ray.data.Dataset:
    if path is None:
        return ray.data.from_items(
            [
                {"row": i, column: f"Generated row {i} of {generated_rows}."}
                for i in range(generated_rows)
            ]
        )
    suffixes = {Path(path).suffix, *(file.suffix for file in Path(path).glob("*"))}
    if suffixes & {".jsonl", ".json"}:
        return ray.data.read_json(path, lines=True, ray_remote_args=_NO_CPU)
    if ".txt" in suffixes:
        lines = ray.data.read_text(path, ray_remote_args=_NO_CPU)
        return lines if column == "text" else lines.rename_columns({"text": column}, num_cpus=0)
    return ray.data.read_parquet(path, ray_remote_args=_NO_CPU)


def _parse_arguments() -> argparse.Namespace:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", help=".parquet, .jsonl or .txt file, or a directory of them")
    parser.add_argument("--rows", type=int, default=1000, help="generated rows without --input")
    parser.add_argument("--column", default="text", help="column with the texts")
    parser.add_argument("--output-column", default="embedding", help="column for the vectors")
    parser.add_argument("--output", required=True, help="output directory for Parquet files")
    parser.add_argument("--app-name", default="embedserve", help="name of the Serve application")
    parser.add_argument("--input-type", help="query, document, or another prompt of the model")
    parser.add_argument("--batch-size", type=int, default=256, help="texts per call")
    parser.add_argument("--concurrency", type=int, default=4, help="concurrent calls")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each call")
    return parser.parse_args()


if __name__ == "__main__":
    main()
