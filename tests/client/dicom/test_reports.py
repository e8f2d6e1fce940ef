"""Reports: SR trees and CSV rows to text; seeded identifiers do not survive, medical words do."""

from __future__ import annotations

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from client.dicom.index import index
from client.dicom.reports import Reports, document_text, read_reports
from client.dicom.scrub import MARK, Known, ordinary_words, scrub
from client.sources.found import SourceError
from configs import load_vocabulary
from tests.client.dicom import scanner as s

MEDMOM = load_vocabulary("medmom")
ORDINARY = ordinary_words(MEDMOM)
KNOWN = Known(
    names={
        "Müller-Lüdenscheidt^Jane Q",
        "O'Brien^Siobhán",
        "Li^Wei",
        "Smith^John^^Dr.",
        "Yamada^Tarou=山田^太郎",
        "White^May",
        "Kowalski^Jan",
        "Яков^Пётр",
    },
    places={"Saint Elsewhere Hospital", "AKH - WIEN", "MRI"},
    numbers={"MRN-0042", "ACC777", "8000000000330109"},
)


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("Patient Jane Müller-Lüdenscheidt", ["Jane", "Müller", "Lüdenscheidt"]),
        ("MUELLER-LUEDENSCHEIDT, JANE", ["MUELLER", "LUEDENSCHEIDT", "JANE"]),
        ("muller's scan; siobhan obrien, Siobhán O'Brien; O’Brien", ["muller", "siobhan", "Siobhán", "O'Brien", "O’Brien"]),
        ("Seen with Li today, WEI agrees", ["Li", "WEI"]),
        ("Mrs White, May", ["White", "May"]),
        ("山田太郎 様", ["山田", "太郎"]),
        ("MRN-0042 / acc777 / 8000000000330109", ["MRN-0042", "acc777", "8000000000330109"]),
        ("at Saint  Elsewhere\nHospital, or the AKH - Wien", ["Elsewhere", "AKH"]),
        ("12/03/2024, 12.3.24, 2024-03-12, 20240312", ["12/03", "12.3", "2024-03", "20240312"]),
        ("3 March 2023; March 5th, 2021; Dec 2022; 5. März 2020; 12 May 2019; le 3 février 2018", ["March", "2021", "2022", "März", "May", "février"]),
        ("Compared with the study on 12/03 and vom 12.03.", ["12/03", "12.03"]),
        ("at 14:30, 09:15:02.", ["14:30", "09:15"]),
        ("Dr. med. Erika Mustermann, Prof. Weber and Ms. T. Jones", ["Erika", "Mustermann", "Weber", "Jones"]),
        ("Dictated by: Hannah Roberts-Clark\nFindings: mass.", ["Hannah", "Roberts", "Clark"]),
        ("Electronically signed by J. K. Rowling", ["Rowling"]),
        ("Radiologist: Anna Kowalska, MD", ["Anna", "Kowalska"]),
        ("Tel. 030/1234567, +49 30 123456 78, (555) 123-4567, phone: 5551234", ["1234567", "123456", "123-4567", "5551234"]),
        ("a.b@c.org, https://pacs.example.org/x?id=3", ["a.b@c", "pacs"]),
        ("MRN: A-99812, Patient ID 4711-B, Accession number: X55512, order no. 20/4711", ["99812", "4711", "X55512"]),
        ("UID 1.2.840.113619.2.55.3", ["113619"]),
        ("a 92-year-old, born 21.03.1932", ["92", "1932"]),
        ("University Hospital, Charité Klinik, Klinikum Bremen-Mitte, Royal Free Hospital", ["Charité", "Bremen", "Royal"]),
        ("12 Main Street; Bahnhofstraße 7", ["Main", "Bahnhof"]),
        ("12/03/2024-14/04/2024, 2024-03-12T09:15:00, 12. 3. 2024, 12MAR2024, 12 / 3 / 2024", ["12/03", "14/04", "09:15", "3. 2024", "MAR", "/ 3"]),
        ("since 03/2024 and 2024-03", ["03/2024", "2024-03"]),
        ("12 de marzo de 2024, el 3 de mayo, enero 2023; 12 maggio 2024; 3 mei 2023; 5 grudnia 2023; 12 марта 2024", ["12", "mayo", "2023", "2024"]),
        ("2024年3月12日 撮影; 2024년 3월 12일", ["2024", "12"]),
        ("DNI 12345678Z, NIE X1234567L, RSSMRA85T10A562S, SSN 123-45-6789, NHC 9981", ["12345678", "1234567", "RSSMRA", "6789", "9981"]),
        ("06 12 34 56 78, 020 7946 0958, 07700 900123", ["34", "0958", "900123"]),
        ("Sra. Carmen Ruiz; Dña. Pilar Sanz; Dr. Ramón y Cajal; Dra. Ana Gil", ["Ruiz", "Pilar", "Sanz", "Cajal", "Ana", "Gil"]),
        ("Dott.ssa Giulia Bianchi; Sig. Rossi; Mevr. Jansen; dhr. de Boer; Monsieur Martin; Mlle Petit; Pani Nowak",
         ["Giulia", "Bianchi", "Rossi", "Jansen", "Boer", "Martin", "Petit", "Nowak"]),
        ("firmado por Carlos Pérez; signé par Jean Dupont; firmato da Neri, Marco; ondertekend door Piet Bakker; podpisane przez Jan Kos",
         ["Carlos", "Pérez", "Jean", "Dupont", "Neri", "Marco", "Piet", "Bakker", "Kos"]),
        ("Dr. van der Berg; Prof. von Hagen; Dr.Smith", ["Berg", "Hagen", "Smith"]),
        ("Hospital Clinic de Barcelona; CHU de Lyon; Ziekenhuis Gelderse Vallei", ["Barcelona", "Clinic", "Lyon", "Gelderse"]),
        ("akh – wien; AKH - WIEN; Kowalskiego, Яковым", ["WIEN", "Kowalsk", "Яков"]),
        ("aged 93; edad 93; 91 anni; at 9am; 14h30; um 14.30 Uhr", ["93", "91", "9am", "14"]),
    ],
)  # fmt: skip
def test_seeded_identifiers_do_not_survive(text, secrets):
    assert all(secret in text for secret in secrets)
    done = scrub(text, KNOWN, ORDINARY)
    assert not [secret for secret in secrets if secret in done], done
    assert MARK in done


PLAIN = """\
MRI of the liver: T1 in/opposed phase, T2 TSE, DWI b=50, 400, 800 s/mm2, dynamic Gd-EOB-DTPA 0.1 mL/kg (10 ml Gadovist).
Segment 7/8: 3.2 x 2.1 x 1.8 cm arterial hyperenhancing mass with washout, LI-RADS 5, series 5, image 12/48. T12/L1 disc.
Child-Pugh A. Couinaud segment IVa. Glisson capsule. Virchow-Robin spaces. Increased from 12 mm to 3.2 cm since the prior study.
WHO grade 3/4, IDH1 R132H, 1p/19q codeletion, Ki-67 20%. Budd-Chiari syndrome. There may be 2 lesions; 2 may be cysts.
TE 100 ms, TR 4500/100. 60-year-old with a 2 to 3 week history. Bismuth-Corlette type IIIa. ADC 0.9-1.2. Sylvian fissure.
The circle of Willis, the foramen of Monro. 10/12 nodes. MS lesions. MR spectroscopy. Case of HCC. 1200 ml. Ratio 1:3.
Reference lesion 1: 14.5 mm. In 2019 resection of segment 6. The march of white matter disease; gray matter is bland.
TR/TE 10/2000 ms, b 800-1000, 2000-10 ms; TE/TR 100/2000. Mayo 2 colitis. 3.2024 cm. C3/4, L4/5. Volume 12500mm3. b 0 400 800.
Leber unauffällig, Milz normal groß, M. Crohn bekannt, M. Iliopsoas links; Segment 4 am Rand. Le foie est de taille normale. El hígado
es normal; lesión en segmento 4, 2 de mayor tamaño. Il fegato appare di dimensioni normali. De lever is normaal.
BI-RADS 2. Milan criteria met. No midline shift (2-3 mm). M. psoas symmetric. Marked T2 hyperintensity on both sides."""


@pytest.mark.parametrize("line", PLAIN.split("\n"))
def test_medical_words_survive(line):
    assert scrub(line, KNOWN, ORDINARY) == line


def test_the_public_texts_of_the_vocabulary_survive():
    texts = []
    for organ in MEDMOM.organs.values():
        texts += (
            [t for said in organ.prompts.values() for t in said] + list(organ.modality_texts.values()) + [organ.query]
        )
        texts += [t for said in organ.attributes.values() for several in said.values() for t in several]
    assert len(texts) > 100
    assert [t for t in texts if scrub(t, Known(), ORDINARY) != t] == []
    assert [t for t in texts if scrub(t.lower(), KNOWN, ORDINARY) != t.lower()] == []  # even for a patient called White


def report(folder, lines, **more):
    return s.write_report(folder / "report.dcm", lines, **more)


def read(folder, table=None) -> Reports:
    return read_reports(index(folder), table, MEDMOM)


def test_a_structured_report_is_read_by_its_headings_and_scrubbed(tmp_path):
    s.write_series(tmp_path, s.T2)
    report(
        tmp_path,
        [("Findings", "Jane Doe has a 3 cm mass, seen by Dr. Noone on 12/03/2024."), ("Impression", "Glioblastoma.")],
    )
    (said,) = read(tmp_path).texts.values()
    assert said == f"Findings: {MARK} has a 3 cm mass, seen by {MARK} on {MARK}.\nImpression: Glioblastoma."


def test_people_that_only_the_report_names_are_taken_out(tmp_path):
    s.write_series(tmp_path, s.T2)
    report(tmp_path, [("Findings", "As vandenberg wrote: no mass.")], observer="Vandenberg^Otto")
    assert list(read(tmp_path).texts.values()) == [f"Findings: As {MARK} wrote: no mass."]


def test_the_verified_report_goes_before_the_later_draft(tmp_path):
    s.write_series(tmp_path, s.T2)
    s.write_report(tmp_path / "a.dcm", [("Findings", "Verified.")], VerificationFlag="VERIFIED", ContentDate="20240101")
    s.write_report(tmp_path / "b.dcm", [("Findings", "Draft.")], VerificationFlag="UNVERIFIED", ContentDate="20240202")
    assert list(read(tmp_path).texts.values()) == ["Findings: Verified."]


@pytest.mark.parametrize("name", ["reportsi.dcm", "test-SR.dcm"])
def test_real_structured_reports(name):
    ds = dcmread(get_testdata_file(name, download=False))
    said = document_text(ds)
    assert len(said) > 20 and "1.2.276" not in said
    for person in ("Riesmeier", "Last Name", "Observer"):
        assert person not in said


def test_a_csv_by_accession_number_and_its_labels(tmp_path):
    s.write_series(tmp_path / "dicom", s.T2)
    table = tmp_path / "reports.csv"
    table.write_text(
        "accession_number;report;abnormality\nACC777;Mass. Jane Doe.;tumour\nNOBODY;x;tumour\n", encoding="utf-8"
    )
    found = read(tmp_path / "dicom", table)
    assert list(found.texts.values()) == [f"Mass. {MARK}."] and list(found.labels.values()) == ["tumour"]
    assert any("1 rows of reports.csv" in note for note in found.notes)


def test_an_accession_number_of_two_patients_gives_neither_a_report(tmp_path):
    """Archives of two hospitals in one, or numbers used again each year."""
    s.write_series(tmp_path / "dicom" / "a", s.T2)
    s.write_series(tmp_path / "dicom" / "b", s.T2, PatientID="OTHER", StudyInstanceUID="1.2.3")
    s.write_series(tmp_path / "dicom" / "c", s.T2, PatientID="THIRD", StudyInstanceUID="1.2.4", AccessionNumber="A3")
    (table := tmp_path / "reports.csv").write_text(
        "accession_number,report,abnormality\nACC777,Mass.,tumour\nA3,Oedema.,tumour\n"
    )
    found = read(tmp_path / "dicom", table)
    assert found.texts == {"1.2.4": "Oedema."} and found.labels == {"1.2.4": "tumour"}
    assert [(p.row, p.problem) for p in found.problems] == [
        (2, "reports.csv: Exams of several patients have this number; the row is not used")
    ]


def test_an_accession_number_without_its_leading_zeros_is_a_row(tmp_path):
    """As a spreadsheet leaves them."""
    s.write_series(tmp_path / "dicom", s.T2, AccessionNumber="00123")
    (table := tmp_path / "reports.csv").write_text("accession_number,report\n123,Mass.\n999,Another's.\n")
    found = read(tmp_path / "dicom", table)
    assert not found.texts and [(p.row, "leading zeros" in p.problem) for p in found.problems] == [(2, True)]
    assert any("1 rows of reports.csv" in note for note in found.notes)


def test_labels_that_two_rows_contradict_are_none_and_a_row_of_too_many_cells_is_left_out(tmp_path):
    s.write_series(tmp_path / "dicom", s.T2)
    table = tmp_path / "reports.csv"
    table.write_text("accession_number,report,abnormality\nACC777,Mass.,tumour\nACC777,Mass.,no_tumour\n")
    found = read(tmp_path / "dicom", table)
    assert list(found.texts.values()) == ["Mass."] and not found.labels and [p.row for p in found.problems] == [3]
    table.write_text("accession_number,report,abnormality\nACC777,Mass, left,tumour\n")
    found = read(tmp_path / "dicom", table)
    assert not found.texts and not found.labels and "The row has 4 cells" in found.problems[0].problem


def test_a_report_that_names_another_patient_than_its_study_is_not_used(tmp_path):
    s.write_series(tmp_path, s.T2)
    report(tmp_path, [("Findings", "Mass.")], PatientID="OTHER")
    found = read(tmp_path)
    assert not found.texts and "names another patient" in found.problems[0].problem


def test_another_id_of_the_patient_is_taken_out(tmp_path):
    other = s.Dataset()
    other.PatientID = "K-77"
    s.write_series(tmp_path, s.T2, OtherPatientIDsSequence=[other])
    report(tmp_path, [("Findings", "Formerly K-77.")])
    assert list(read(tmp_path).texts.values()) == [f"Findings: Formerly {MARK}."]


def test_two_rows_of_one_accession_number_are_a_problem(tmp_path):
    s.write_series(tmp_path / "dicom", s.T2)
    table = tmp_path / "reports.csv"
    table.write_text("accession_number,report\nACC777,One.\nACC777,Two.\n")
    found = read(tmp_path / "dicom", table)
    assert list(found.texts.values()) == ["One."]
    assert [p.row for p in found.problems] == [3]


def test_a_csv_without_its_columns_is_refused(tmp_path):
    s.write_series(tmp_path / "dicom", s.T2)
    (table := tmp_path / "reports.csv").write_text("accession,text\n1,2\n")
    with pytest.raises(SourceError, match="has no column accession_number"):
        read(tmp_path / "dicom", table)
