"""What the Hugging Face libraries read from the environment when they are imported."""

from __future__ import annotations

from pathlib import Path


def offline_environment(state: Path, hub: bool = False) -> dict[str, str]:
    """Variables that keep the libraries off the network, quiet, and their caches in the state folder.

    To be set before ``transformers``, ``datasets`` or ``lm_eval`` is imported. With ``hub`` models and data may come
    from the hub.
    """
    variables = {
        "HF_DATASETS_CACHE": str(state / "datasets"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "LMEVAL_LOG_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    return variables if hub else variables | {"HF_HUB_OFFLINE": "1"}
