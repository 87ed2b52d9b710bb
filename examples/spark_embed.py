"""Embed a Parquet file with Spark: `spark-submit spark_embed.py texts.parquet vectors.parquet`.

Every Python worker of an executor holds one engine, made at its first batch.
"""

import sys
from collections.abc import Callable
from typing import Any

MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def make_predict() -> Callable[[Any], Any]:
    """What Spark calls once in each of its Python workers, and then batch by batch."""
    from millpond import Engine

    engine = Engine.shared(MODEL)
    return lambda texts: engine.embed(texts.tolist(), task="document")  # float32 [n, 384]


def main(source: str, target: str) -> None:
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import ArrayType, FloatType

    spark = SparkSession.builder.appName("embed").getOrCreate()
    embed = predict_batch_udf(make_predict, return_type=ArrayType(FloatType()), batch_size=4096)
    texts = spark.read.parquet(source).dropna(subset=["text"])
    texts.withColumn("embedding", embed("text")).write.parquet(target)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:3])
