"""The processor of a checkpoint folder, which turns pictures and words into inputs.

Video processors of transformers need torchvision, and their processors can't be built without one; pictures need
neither. So without torchvision a processor is built here, with the settings of its video processor in its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opskip_compile.errors import OpSkipError, in_one_line
from opskip_compile.models.folders import IMAGES, PROCESSOR, TOKENIZER, check_processor_files, read_table
from opskip_compile.models.prompts import audio_part

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_VIDEO_FILE, _VIDEO = "video_preprocessor_config.json", "video_processor"
_NEEDED = ("patch_size", "num_image_tokens", "num_query_tokens", "vision_feature_select_strategy")


class VideoSettings(dict[str, Any]):
    """What a folder says of its video processor, read as attributes as from the processor itself.

    What it does not say is None: only videos ask for it.
    """

    model_input_names = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __call__(self, *args: object, **named: object) -> None:
        """Raises `OpSkipError`."""
        raise OpSkipError("videos can't be read without torchvision: pip install torchvision")


def load_processor(folder: Path, config: Any) -> Any:
    """The processor in a folder, with a tokenizer and an image processor or a part for audio; no code in the folder is
    executed.

    Args:
        config: that of the model in the folder.

    Raises:
        OpSkipError: names the file that is missing, or says what is wrong.
    """
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    check_processor_files(folder)
    try:
        kind = None if is_torchvision_available() else _class_with_videos(folder, config)
        loaded = AutoProcessor.from_pretrained(folder, **_LOCAL) if kind is None else _without_videos(kind, folder)
    except OpSkipError:
        raise
    except Exception as error:  # each class has its own way to fail on files that it does not expect
        why = _reason(folder, error)
        raise OpSkipError(f"model: no processor could be loaded from {str(folder)!r}: {why}") from error
    if getattr(loaded, "image_processor", None) is None and audio_part(loaded) is None:
        raise OpSkipError(f"model: the processor in {str(folder)!r} has no image processor")
    if getattr(loaded, "tokenizer", None) is None:
        raise OpSkipError(f"model: the processor in {str(folder)!r} has no tokenizer")
    file = folder / PROCESSOR
    unknown = [name for name in _NEEDED if getattr(loaded, name, "") is None]
    if unknown:
        lacks = f"{str(file)!r} does not give" if file.is_file() else f"there is no file {str(file)!r}, which gives"
        raise OpSkipError(f"model: {lacks} {', '.join(unknown)} of the {type(loaded).__name__}")
    return loaded


def _reason(folder: Path, error: Exception) -> str:
    """Why a processor could not be built, and which of its files is not there."""
    from transformers.utils import is_torchvision_available

    if "torchvision" in str(error).lower() and not is_torchvision_available():
        return f"{str(error).split(maxsplit=1)[0]} needs torchvision: pip install torchvision"
    lack = "" if (folder / TOKENIZER).is_file() else f"; there is no file {str(folder / TOKENIZER)!r}"
    return in_one_line(error) + lack


def _class_with_videos(folder: Path, config: Any) -> Any:
    """The class of transformers for the processor in a folder, if it wants a video processor; else None."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    names = (read_table(folder / file).get("processor_class") for file in (PROCESSOR, IMAGES, TOKENIZER))
    known = [getattr(transformers, name) for name in names if isinstance(name, str) and hasattr(transformers, name)]
    kind = known[0] if known else PROCESSOR_MAPPING.get(type(config), None)
    if kind is None or getattr(kind, "is_dummy", False) or not hasattr(kind, "get_attributes"):
        return None  # AutoProcessor finds something else, or says what it lacks
    return kind if _VIDEO in kind.get_attributes() else None


def _without_videos(kind: Any, folder: Path) -> Any:
    """A processor of the class ``kind`` for pictures and words."""
    from transformers import AutoFeatureExtractor, AutoTokenizer

    # Not from the top: there transformers 5.17 has none without torchvision
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    def part(name: str) -> Any:
        if name == _VIDEO:
            return _video_settings(folder)
        if name == "tokenizer":
            return AutoTokenizer.from_pretrained(folder, **_LOCAL)
        if name == "image_processor":
            return AutoImageProcessor.from_pretrained(folder, **_LOCAL)
        return AutoFeatureExtractor.from_pretrained(folder, **_LOCAL)

    def check_argument_for_proper_class(self: Any, name: str, argument: Any) -> Any:
        """transformers' own check looks video processors up, which it can't without torchvision."""
        return type(argument) if name == _VIDEO else kind.check_argument_for_proper_class(self, name, argument)

    settings, _ = kind.get_processor_dict(folder, **_LOCAL)
    methods = {
        "check_argument_for_proper_class": check_argument_for_proper_class,
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
    }
    return type(kind.__name__, (kind,), methods).from_args_and_dict(  # type: ignore[attr-defined]
        [part(name) for name in kind.get_attributes()], settings
    )


def _video_settings(folder: Path) -> VideoSettings:
    """In a file of its own, in that of the processor, or, in older folders, those of the images."""
    for table in (read_table(folder / _VIDEO_FILE), read_table(folder / PROCESSOR).get(_VIDEO)):
        if isinstance(table, dict) and table:
            return VideoSettings(table)
    return VideoSettings(read_table(folder / IMAGES))
