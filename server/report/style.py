"""The report's style sheet: one column on a phone, two on a desk, A4 on paper; light, as print is."""

STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --soft: #555; --line: #d9d9d9; --wash: #f5f6f8;
  --blue: #0072b2; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
main, header, footer { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
h1, h2, h3, p, li, td, th, figcaption { overflow-wrap: anywhere; }
p { margin: .4rem 0 .7rem; max-width: 46rem; }
ul { padding-left: 1.2rem; margin: .4rem 0; max-width: 46rem; }
li { margin: .35rem 0; }
.soft, small { color: var(--soft); font-size: .85rem; }
.notice { border-left: 4px solid #8a8a8a; background: var(--wash); padding: .5rem .9rem; margin: .6rem 0; }
.notice.warn { border-color: #b35900; background: #fdf3e7; }
.notice p { margin: 0; max-width: none; }
.headline { font-size: 1.15rem; font-weight: 600; max-width: none; }
nav { margin: .9rem 0 0; font-size: .9rem; }
nav a { display: inline-block; margin-right: .9rem; padding: .15rem 0; }
a { color: #005a8c; }

.box { position: relative; overflow-x: auto; margin: .5rem 0 .2rem; }
.box:focus-visible { outline: 2px solid var(--blue); }
table { border-collapse: collapse; width: max-content; max-width: none; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .3rem; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top;
  white-space: nowrap; }
th { font-weight: 600; }
thead th { background: var(--wash); border-bottom: 1px solid #b5b5b5; vertical-align: bottom; }
th[scope=row], th.text, td.text { text-align: left; }
th small, td small { display: block; font-weight: 400; font-size: .85em; }
th[scope=row], td.text, table.grid thead th { max-width: 14rem; white-space: normal;
  overflow-wrap: anywhere; min-width: min-content; }
table.scores { width: auto; }
table.scores th { overflow-wrap: normal; }
table.scores thead th { white-space: normal; }
tr.federated th, tr.federated td { background: #eaf4fb; }
th[scope=rowgroup], th[scope=colgroup] { text-align: left; background: var(--wash); }
table.grid th, table.grid td { text-align: center; border: 1px solid #fff; padding: .3rem .45rem; }
table.grid th[scope=row], table.grid th.text { text-align: left; }
table.grid td { min-width: 2.9rem; }
td.own { outline: 2.5px solid #d55e00; outline-offset: -3px; }
td.has { background: #cfe4f3; font-weight: 600; }
table.rounds td { min-width: 1.7rem; padding: .3rem; }
table.rounds th[scope=col]:not(.text) { font-weight: 400; padding: .3rem .1rem; }
td.returned { background: #cfe4f3; color: var(--soft); }
td.silent, td.refused, td.absent { font-weight: 700; }
td.silent { background: #fbe3c6; }
td.refused { background: #f3c9c0; }
td.absent { background: #e3e3e3; }
td.none { background: #fafafa; color: var(--soft); }
.bar { display: block; width: 9rem; height: .75rem; margin-top: .3rem; background: #ececec; }
.bar i { display: block; height: 100%; background: var(--blue); }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }

.pair { display: grid; grid-template-columns: minmax(0, 1fr); gap: .5rem 2rem; align-items: start; }
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr));
  gap: 0 2rem; }
table.details { font-size: .84rem; }
table.details th, table.details td { padding: .3rem .45rem; }
table.details thead th, table.corruptions thead th { white-space: normal; max-width: 5.5rem;
  overflow-wrap: normal; }
table.details th[scope=row] { max-width: 9rem; }
.halves table.details, table.corruptions { font-size: .8rem; }
.halves table.details th, .halves table.details td, table.corruptions th, table.corruptions td {
  padding: .28rem .36rem; }
.halves table.details th[scope=row] { max-width: 7.5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1rem 1.5rem; }
.charts svg, .pair svg { width: 100%; height: auto; max-width: 30rem; display: block; }
.wide svg { width: 100%; height: auto; max-width: 60rem; display: block; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: system-ui, "Segoe UI", Roboto, Arial, sans-serif !important; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; list-style: none; padding: 0;
  margin: .3rem 0 .8rem;
  max-width: none; font-size: .85rem; }
.legend li { margin: 0; display: flex; align-items: center; gap: .4rem; }
.legend svg { width: 2.4rem; height: .9rem; flex: none; }

.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
  gap: 1rem; }
.examples { align-items: start; }
.example { border: 1px solid var(--line); padding: .8rem; margin: 0; break-inside: avoid; }
.example h3 { margin: 0 0 .4rem; }
.slices { display: flex; flex-wrap: wrap; gap: .4rem; }
.slices figure { margin: 0; width: 4.6rem; }
.slices img { width: 100%; aspect-ratio: 1; background: #000; display: block; }
.slices figure p { aspect-ratio: 1; margin: 0; display: grid; place-items: center; text-align: center;
  border: 1px dashed #999; }
.slices figcaption { font-size: .75rem; color: var(--soft); text-align: center; }
.slices figcaption small { display: block; white-space: nowrap; }
.example blockquote { margin: .6rem 0; padding-left: .7rem; border-left: 3px solid var(--line);
  font-size: .9rem; }
.example table { width: 100%; font-size: .85rem; }
.example td, .example th { border: 0; padding: .1rem .3rem; }
.example .bar { width: 6rem; }
.example tr.truth th { font-weight: 700; }
.example th { font-weight: 400; }

pre { background: var(--wash); padding: .8rem; overflow: auto; max-height: 26rem; font-size: .8rem;
  line-height: 1.4; }
footer { margin-top: 3rem; padding-bottom: 2rem; }

@media (min-width: 60rem) { .pair { grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); } }
@media (max-width: 40rem) {
  main, header, footer { padding: 0 1rem; }
  header { padding-top: 1rem; }
  h1 { font-size: 1.4rem; }
  .headline { font-size: 1.05rem; }
  table { font-size: .84rem; }
  th, td { padding: .3rem .4rem; }
  .example { padding: .7rem; }
}
@page { size: A4; margin: 14mm 13mm; }
@media print {
  html { font-size: 9.5pt; }
  body { font-size: 1rem; line-height: 1.4; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main, header, footer { max-width: none; padding: 0; }
  nav { display: none; }
  .box, pre { overflow: visible; max-height: none; }
  table { font-size: .88rem; }
  table.grid td { min-width: 0; }
  table.grid th, table.grid td { padding: .25rem .28rem; }
  table.rounds { font-size: .7rem; }
  table.rounds th, table.rounds td { padding: .2rem .14rem; }
  h2, h3, caption { break-after: avoid; }
  h2 { margin-top: 1.6rem; }
  tfoot { display: table-row-group; }
  p { break-inside: avoid; }
  p:has(+ .box) { break-after: avoid; }
  table.grid, table.timing, tr, .notice, .charts > *, .pair > *, li { break-inside: avoid; }
  .charts, .halves { grid-template-columns: 1fr 1fr; }
  table.details { font-size: .76rem; }
  table.details th, table.details td { padding: .25rem .35rem; }
  .pair { grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 1rem; }
  .examples { grid-template-columns: 1fr 1fr; }
  pre { white-space: pre-wrap; font-size: .74rem; columns: 2; }
}
"""
