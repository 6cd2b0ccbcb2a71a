"""Settings of pictures without captions."""

from __future__ import annotations

import dataclasses

from dlrrec_torchrec.config.table_section import option


@dataclasses.dataclass
class PicturesConfig:
    """Pictures of reviews and items that come without captions: who puts them into words."""

    captioner: str = option(
        "none",
        "who writes captions where a picture has none: nobody, BLIP-2 on this machine, or the vision model "
        "that the section llm names",
        ("none", "blip2", "vision"),
    )
    captioner_model: str = option(
        "Salesforce/blip2-opt-2.7b", "BLIP-2 model: hub name or folder (the papers' is the default)"
    )
    picture_vectors: str = option(
        "captions",
        "what a picture's vector is made of: its caption, by the text encoder, or its pixels, by a ResNet",
        ("captions", "resnet"),
    )
    resnet_model: str = option("microsoft/resnet-50", "for 'resnet': hub name or folder")
    picture_folder: str = option(
        "",
        "where relative paths of pictures begin, the only folder that is read (default: the reviews')",
    )
    picture_batch: int = option(8, "pictures that are described at once", least=1)
    picture_mib: int = option(20, "MiB of a picture's file, at most", least=1)
    picture_seconds: float = option(20.0, "seconds that the download of a picture may take", above=0)
    private_links: bool = option(
        False, "follow links to addresses of this machine and its network too, not of the internet alone"
    )
