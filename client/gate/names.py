"""The names that a reply may hold: the site's, which site.yaml says, and those of its vocabulary; no others, as a name of one's
own choice is a message."""

from __future__ import annotations

from dataclasses import dataclass

from client.policy import SiteFile
from configs import load_vocabulary
from configs.schema import DataConfig
from medmap_model.releases import cohort_tables, score_table
from medmap_model.vocabulary import Vocabulary


@dataclass(frozen=True)
class Names:
    """Of one site."""

    site: str
    vocabulary: Vocabulary

    @classmethod
    def of(cls, own: SiteFile) -> Names:
        """Those that site.yaml declares. Raises ConfigError where its vocabulary is none."""
        path = own.egress.vocabulary
        return cls(own.name, load_vocabulary(str(path) if path else DataConfig.vocabulary))

    def tables(self, organ: str, *, bins: int | None) -> dict[str, tuple[int, ...]]:
        """The shapes of what can be released of an organ: its scores in so many bins (as `scores`), or its cohort's tables."""
        known = self.vocabulary.organs[organ]
        if bins is not None:
            return {"scores": score_table(known, bins=bins).shape}
        return {name: table.shape for name, table in cohort_tables(known).items()}

    def is_group(self, name: str) -> bool:
        """Whether a module group can have this name, however encoders are shared (`medmap_model.groups`)."""
        what, _, rest = name.partition("/")
        match what:
            case "encoder":
                return rest == "shared" or self._joined(rest)
            case "projection":
                return rest in self.vocabulary.modalities
            case "head":
                return rest in self.vocabulary.organs
        return name in ("text_projection", "fusion")

    def _joined(self, name: str) -> bool:
        try:
            return bool(self.vocabulary.modalities_in(name))  # of an empty one there are none
        except ValueError:
            return False
