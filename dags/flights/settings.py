"""Where the example keeps its data. DAG files and tasks import it; it imports nothing heavy."""

from __future__ import annotations

import os

HOME = os.environ.get("FLIGHTS_HOME", "/tmp/airflow-hydrogen/flights").rstrip("/")
LAKE = f"{HOME}/lake"
MODELS = f"{HOME}/models"
SCORES = f"{HOME}/scores"
EVALUATIONS = f"{HOME}/evaluations"

MODEL_ASSET = "flight_delay_model"
SCORES_ASSET = "flight_delay_scores"
