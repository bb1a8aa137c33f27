"""How the report looks: on a wide screen, a telephone and paper, light and dark."""

from bench.benchmarking.palette import DARK, LIGHT, variables

TELEPHONE = "44rem"
"""Below it, a table of figures is a card for each row, and plots are the narrow ones."""

STYLE = (
    f"""
:root {{ color-scheme: light dark; {variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}
"""
    + """
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  margin: 0; overflow-wrap: anywhere; }
main { max-width: 61rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p { margin: .4rem 0; }
.quiet { color: var(--quiet); font-size: .92rem; }
section, .verdict, .card { background: var(--surface); border: 1px solid var(--line);
  border-radius: 8px; }
section, .verdict { padding: 1rem 1.2rem; margin: 1rem 0; }
.verdict { border-left: 8px solid; }
.valid { border-left-color: var(--good); } .invalid { border-left-color: var(--bad); }
.verdict strong { font-size: 1.25rem; }
.valid strong, .better { color: var(--good); } .invalid strong, .worse { color: var(--bad); }
.better, .worse { font-weight: 650; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem; }
.card { padding: .7rem 1rem; }
.card b { display: block; font-size: 1.6rem; line-height: 1.2; font-weight: 650; }
.card span { color: var(--quiet); font-size: .88rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .92rem; }
th, td { text-align: right; padding: .35rem .5rem; border-bottom: 1px solid var(--line);
  vertical-align: top; font-weight: inherit; }
th, td { overflow-wrap: normal; }
td { white-space: nowrap; }
thead th { color: var(--quiet); font-weight: 600; }
th:first-child { text-align: left; }
tbody th { font-weight: 600; min-width: 6.8rem; overflow-wrap: anywhere; }
.text, .thumb, .unit { text-align: left; }
.unit { white-space: normal; }
.text { white-space: normal; overflow-wrap: anywhere; }
td .quiet { display: block; font-size: .8rem; }
img { display: block; max-width: 72px; height: auto; border-radius: 4px; }
figure { margin: 0; }
figcaption { color: var(--quiet); font-size: .92rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.narrow { display: none; }
dl { margin: .6rem 0 0; font-size: .92rem; color: var(--quiet); }
dt { font-weight: 600; color: var(--ink); display: inline; }
dd { display: inline; margin: 0; }
dd::after { content: ""; display: block; margin-bottom: .25rem; }
ul { margin: .4rem 0; padding-left: 1.2rem; }
li { margin: .3rem 0; }
code { font-size: .88em; }
@media (max-width: """
    + TELEPHONE
    + """) {
  main { padding: 1rem .6rem 2rem; }
  section, .verdict { padding: .8rem .8rem; }
  .cards { gap: .5rem; }
  th, td { padding: .35rem .25rem; }
  tbody th { min-width: 5.5rem; }
  .wide { display: none; }
  .narrow { display: block; }
  .stack, .stack tbody { display: block; }
  .stack thead { position: absolute; clip-path: inset(50%); height: 1px; width: 1px;
    overflow: hidden; }
  .stack tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.6rem, 1fr));
    gap: .3rem .8rem; padding: .6rem 0; border-bottom: 1px solid var(--line); }
  .stack tbody tr:last-child { border-bottom: 0; }
  .stack th, .stack td { display: block; text-align: left; border: 0; padding: 0;
    white-space: normal; }
  .stack td::before { content: attr(data-label); display: block; color: var(--quiet);
    font-size: .8rem; }
  .stack tbody th, .stack .text { grid-column: 1 / -1; }
  .stack .thumb { grid-row: span 2; }
  .stack .thumb:empty { display: none; }
}
@media print { body { background: none; } section { break-inside: avoid; } }
"""
)
