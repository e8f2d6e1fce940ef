"""The phrases that reports are made of: several ways to say each thing. No logic, no diagnosis outside `DIAGNOSES`."""

from __future__ import annotations

OPENINGS = (
    "There is {a_size} {noun} {where}.",
    "{A_size} {noun} is seen {where}.",
    "{Where} there is {a_noun} measuring {size}.",
    "{A_noun} of {size} lies {where}.",
    "{Noun} {where}, {size} in longest axial diameter.",
    "{Where}: {noun}, {size}.",
)
OPENINGS_SEVERAL = (
    "{Number} {noun}s; the largest, {size}, lies {where}.",
    "There are {number} {noun}s, the dominant one {where} with a diameter of {size}.",
    "{Number} {noun}s are seen. The largest measures {size} and is located {where}.",
    "{Number} {noun}s, the biggest {where} ({size}).",
)
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
NOUNS = {
    "brain": ("mass", "lesion", "focal lesion", "space-occupying lesion"),
    "liver": ("lesion", "focal lesion", "mass"),
}
EXTRA_AXIAL_NOUNS = ("extra-axial mass", "dural-based lesion", "extra-axial lesion")

WHERE = {
    "lobe": ("in the {side} {place} lobe", "within the {side} {place} lobe", "in the {place} lobe on the {side}"),
    "lobe midline": ("in the {place} region near the midline", "close to the midline in the {place} region"),
    "convexity": ("along the {side} {place} convexity", "over the {side} {place} convexity"),
    "convexity midline": ("along the {place} convexity near the midline",),
    "deep": ("deep in the {side} hemisphere", "in the {side} deep grey and white matter"),
    "deep midline": ("in the deep structures near the midline",),
    "cerebellum": ("in the {side} cerebellar hemisphere", "in the cerebellum on the {side}"),
    "cerebellum midline": ("in the cerebellum near the midline",),
    "brainstem": ("in the brainstem",),
    "segment": (
        "in segment {place} of the {side} hepatic lobe",
        "in the {side} lobe of the liver, segment {place}",
        "in liver segment {place} ({side} lobe)",
    ),
}

NAMES = {
    "T1": ("T1", "unenhanced T1", "native T1"),
    "T1ce": ("post-contrast T1", "contrast-enhanced T1"),
    "T2": ("T2", "T2-weighted images"),
    "FLAIR": ("FLAIR",),
    "T2WI": ("T2", "T2-weighted images", "fat-suppressed T2"),
    "DWI": ("DWI", "diffusion-weighted images"),
    "InPhase": ("in-phase images",),
    "OutPhase": ("opposed-phase images", "out-of-phase images"),
    "C-pre": ("unenhanced T1", "the pre-contrast phase"),
    "C+A": ("the arterial phase",),
    "C+V": ("the portal venous phase",),
    "C+Delay": ("the delayed phase",),
}
# From which ratio to the surroundings on, in either direction, a word is used.
LEVELS = {
    "markedly hyper": ("markedly hyperintense", "very bright", "strongly hyperintense"),
    "hyper": ("hyperintense", "bright", "high in signal"),
    "iso": ("isointense", "similar to its surroundings"),
    "hypo": ("hypointense", "dark", "low in signal"),
    "markedly hypo": ("markedly hypointense", "very dark"),
}
SIGNALS = ("It is {clauses}.", "The lesion is {clauses}.", "It appears {clauses}.", "Appearance: {clauses}.")

# Enhancement, brain: what the post-contrast volume shows.
RING = (
    "Ring enhancement around a non-enhancing centre.",
    "After contrast there is a thick enhancing rim.",
    "The margin enhances and the centre does not.",
    "Peripheral ring-like enhancement on post-contrast T1.",
)
SOLID = (
    "Homogeneous enhancement after contrast.",
    "It enhances avidly and uniformly.",
    "Intense solid enhancement on post-contrast T1.",
)
PARTIAL = ("Patchy enhancement after contrast.", "It enhances in part.")
NO_UPTAKE = (
    "No contrast enhancement.",
    "It does not enhance.",
    "There is no uptake of contrast agent.",
)
OEDEMA = (
    "Surrounding vasogenic oedema.",
    "There is perifocal oedema.",
    "The adjacent white matter is oedematous.",
)
MUCH_OEDEMA = (
    "Extensive surrounding oedema.",
    "Oedema out of proportion to the size of the mass.",
)
PRESSURE = (
    "Local mass effect.",
    "The adjacent structures are displaced.",
    "Mass effect on neighbouring tissue.",
)

# Enhancement, liver: {phase} is one phase, {phases} one or more.
ARTERIAL_BRIGHT = (
    "Hyperenhancement in the arterial phase.",
    "It enhances more than the liver in the arterial phase.",
    "Avid arterial phase enhancement.",
)
RIM = (
    "Rim enhancement in {phases}.",
    "Peripheral enhancement in {phases}.",
    "In {phases} only the periphery enhances.",
)
WASHOUT = ("Washout in {phases}.", "It washes out in {phases}.")
CAPSULE = (
    "An enhancing outer rim in {phases}.",
    "A capsule-like rim enhances in {phases}.",
)
FILL_IN = (
    "Progressive enhancement towards the centre, most complete in {phase}.",
    "The centre fills in by {phase}.",
    "Gradual central enhancement up to {phase}.",
)
LATE_CENTRE = ("The centre enhances in {phase}.", "Late central enhancement in {phase}.")
POOR = (
    "It enhances less than the liver in {phases}.",
    "Hypoenhancing in {phases}.",
)
EQUAL = ("It is indistinguishable from the liver in {phases}.", "Isointense to the liver in {phases}.")
BRIGHT_LATER = ("It remains brighter than the liver in {phases}.", "Persistent enhancement in {phases}.")
BRIGHT = ("It is brighter than the liver in {phases}.", "Enhancement above that of the liver in {phases}.")
NO_ENHANCEMENT = (
    "No enhancement in {phases}.",
    "It does not enhance in {phases}.",
)
RESTRICTED = ("This suggests restricted diffusion.", "Diffusion appears restricted.")
FAT = ("Signal drop against the liver on opposed-phase images.", "It loses signal on opposed-phase images.")
LIVER_OEDEMA = ("The surrounding parenchyma is oedematous.", "Perilesional oedema.")

# No lesion: what every report of a normal brain says, and what needs a modality.
CLEAR = (
    "No mass lesion and no mass effect.",
    "No focal mass. The midline is central.",
    "There is no space-occupying lesion.",
)
CLEAR_CONTRAST = ("No abnormal enhancement.", "No pathological uptake of contrast agent.")
CLEAR_SIGNAL = (
    "Normal signal of the parenchyma on {modalities}.",
    "Parenchymal signal on {modalities} is unremarkable.",
)
SPOTS = (
    "Nonspecific punctate white-matter foci.",
    "A small nonspecific bright focus in the white matter.",
)

HEDGES = ("consistent with", "in keeping with", "suggestive of", "most likely", "compatible with")
IMPRESSIONS = (
    "Impression: {hedge} {diagnosis}.",
    "{Hedge} {diagnosis}.",
    "Findings {hedge} {diagnosis}.",
    "{Diagnosis}.",
)
IMPRESSIONS_CLEAR = ("Impression: {diagnosis}.", "{Diagnosis}.", "Conclusion: {diagnosis}.")
DIAGNOSES: dict[tuple[str, str], tuple[str, ...]] = {
    ("brain", "normal"): ("normal brain MRI", "no evidence of a brain tumour", "unremarkable brain MRI without tumour"),
    ("brain", "glioblastoma"): ("glioblastoma", "high-grade glioma (glioblastoma)", "glioblastoma, a brain tumour"),
    ("brain", "low_grade_glioma"): ("low-grade glioma", "diffuse low-grade glioma", "low-grade glioma, a tumour"),
    ("brain", "metastasis"): ("brain metastasis", "a cerebral metastasis", "metastatic brain tumour"),
    ("brain", "meningioma"): ("meningioma", "a convexity meningioma", "meningioma, an extra-axial tumour"),
    ("liver", "hemangioma"): ("haemangioma", "hepatic haemangioma", "a cavernous haemangioma of the liver"),
    ("liver", "icc"): ("intrahepatic cholangiocarcinoma", "cholangiocarcinoma", "mass-forming cholangiocarcinoma"),
    ("liver", "abscess"): ("liver abscess", "hepatic abscess", "a pyogenic abscess of the liver"),
    ("liver", "metastasis"): ("liver metastasis", "hepatic metastasis", "metastatic disease of the liver"),
    ("liver", "cyst"): ("simple hepatic cyst", "a benign liver cyst", "uncomplicated hepatic cyst"),
    ("liver", "fnh"): ("focal nodular hyperplasia", "FNH", "focal nodular hyperplasia (FNH)"),
    ("liver", "hcc"): ("hepatocellular carcinoma", "HCC", "hepatocellular carcinoma (HCC)"),
}  # fmt: skip
# Roots that name a diagnosis: none may appear in a report that withholds it.
DIAGNOSIS_ROOTS = (
    "gliobl", "glioma", "metasta", "meningioma", "haemangioma", "hemangioma", "cholangiocarcinoma", "abscess", "cyst",
    "hyperplasia", "fnh", "hepatocellular", "hcc", "tumour", "tumor", "normal brain", "unremarkable brain",
)  # fmt: skip
AMERICAN = {"oedema": "edema", "haemangioma": "hemangioma", "tumour": "tumor", "grey": "gray"}
