#!/usr/bin/env python3
"""Makes a bucket where there is none: `make_bucket.py NAME`; the AWS_* variables say where, and as whom."""

from __future__ import annotations

import sys

from pyarrow.fs import FileSystem

if __name__ == "__main__":
    filesystem, bucket = FileSystem.from_uri(f"s3://{sys.argv[1]}?allow_bucket_creation=true")
    filesystem.create_dir(bucket)
