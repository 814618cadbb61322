"""All tiny models, in the order in which they are made."""

from __future__ import annotations

import family_bert
import family_distilbert
import family_gte
import family_jina
import family_layouts
import family_modernbert
import family_mpnet
import family_nomic
import family_roberta
import family_t5
import family_variants
from family import Family

FAMILIES: list[Family] = [
    *family_bert.FAMILIES,
    *family_mpnet.FAMILIES,
    *family_roberta.FAMILIES,
    *family_distilbert.FAMILIES,
    *family_t5.FAMILIES,
    *family_modernbert.FAMILIES,
    *family_nomic.FAMILIES,
    *family_gte.FAMILIES,
    *family_jina.FAMILIES,
    *family_variants.FAMILIES,
    *family_layouts.FAMILIES,
]
