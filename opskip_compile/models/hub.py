"""Checkpoints by their name on the Hugging Face hub: a folder of its cache, filled where need be.

The hub's client asks again and again, for minutes, for each file of a hub that can't be reached. Here it is asked once,
with a time-out, before anything else.
"""

from __future__ import annotations

from pathlib import Path

from opskip_compile.errors import OpSkipError, in_one_line
from opskip_compile.models.folders import CONFIG

PATIENCE = 10.0  # seconds
_NEVER_READ = ["*.msgpack", "*.h5", "*.ot", "*.onnx", "*.onnx_data", "*.gguf", "*.pth", "*.tflite", "original/*"]


def hub_folder(name: str, field: str = "model") -> Path:
    """The folder with the newest files of a model on the hub, or, where the hub can't be reached, those of its cache.

    Args:
        field: what messages call the name.

    Raises:
        OpSkipError: the hub has no such model, or can't be reached and the cache does not have it either.
    """
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        about = HfApi().model_info(name, timeout=PATIENCE)
    except HFValidationError as error:
        raise OpSkipError(f"{field}: {name!r} is no folder, and no name of a model on the hub") from error
    except RepositoryNotFoundError as error:
        raise OpSkipError(f"{field}: {name!r} is no folder, and no model on the hub that you may read") from error
    except Exception as error:  # of the network and its library, whichever that is in this version, and of the hub
        cached = try_to_load_from_cache(name, CONFIG)
        if isinstance(cached, str):
            return Path(cached).parent
        raise OpSkipError(
            f"{field}: {name!r} is no folder and not in the hub's cache, and the hub can't be reached: "
            f"{in_one_line(error)}"
        ) from error
    files = [file.rfilename for file in about.siblings or ()]
    no_need = ["*.bin"] if any(file.endswith(".safetensors") for file in files) else []
    try:
        return Path(snapshot_download(name, ignore_patterns=[*_NEVER_READ, *no_need]))
    except GatedRepoError as error:
        raise OpSkipError(f"{field}: {name!r} is only for those whom its owners let in: hf auth login") from error
    except Exception as error:  # as above
        raise OpSkipError(f"{field}: {name!r} can't be downloaded: {in_one_line(error)}") from error
