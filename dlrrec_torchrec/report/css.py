"""The style of the HTML page, for light and dark screens of any width."""

CSS = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#5b6575; --line:#dde2ea; --page:#f6f7f9; --card:#fff;
  --accent:#0072b2; --best:#e3f0f9; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ef; --soft:#9aa5b5; --line:#333b48; --page:#14181f;
  --card:#1c222b; --accent:#56b4e9; --best:#1d3a4f; } }
* { box-sizing:border-box } body { margin:0; background:var(--page); color:var(--ink);
  font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif }
main { max-width:1080px; margin:0 auto; padding:2.2rem 1.2rem 4rem }
h1 { font-size:1.7rem; margin:0 } h2 { font-size:1.15rem; margin:2.4rem 0 .7rem }
.soft, figcaption, small { color:var(--soft) } .verdict { font-size:1.08rem; margin:1.1rem 0 }
summary { cursor:pointer; margin:.8rem 0 .4rem }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:.4rem 1rem;
  overflow-x:auto }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums }
th,td { padding:.42rem .6rem; text-align:right; border-bottom:1px solid var(--line); white-space:nowrap }
th:first-child,td:first-child,td.text,th.text { text-align:left } td.text { white-space:normal }
td.text:not(:first-child) { min-width:11rem }
tr:last-child td { border-bottom:0 } th { font-weight:600; color:var(--soft); font-size:.87rem }
tr.group td { color:var(--soft); font-size:.8rem; text-transform:uppercase; letter-spacing:.06em; border:0;
  padding-top:.9rem }
td.best { background:var(--best); font-weight:600; border-radius:4px } td small { display:block }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr)); gap:1rem;
  align-items:start }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px; padding:.8rem }
img { width:100%; height:auto; background:#fff; border-radius:6px; display:block }
figcaption { font-size:.87rem; padding-top:.5rem } ul { padding-left:1.2rem; margin:.4rem 0 }
dl { display:grid; grid-template-columns:max-content 1fr; gap:.3rem 1.2rem; margin:.6rem 0 }
dt { font-weight:600 } dd { margin:0; color:var(--soft) }
h3 { font-size:.87rem; color:var(--soft); margin:.9rem 0 .2rem }
dl.about { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:.8rem 1rem }
dl.about dd { color:var(--ink); overflow-wrap:anywhere } dl.about ul { margin:0; padding-left:1.1rem }
.verdict p { margin:.45rem 0 } code { font-size:.87em }
.sides { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr)); gap:.4rem 2rem;
  margin:.4rem 0 .6rem }
.example { margin-bottom:1rem } .example h3 { color:var(--ink) }
.example ol { padding-left:1.6rem; margin:.3rem 0 }
.example li>span:first-child { display:inline-block; width:calc(100% - 3rem); vertical-align:top }
.example li>.soft { float:right } .mark { white-space:nowrap }
@media (prefers-color-scheme: dark) { img { filter:invert(.88) hue-rotate(180deg) } }
@media (max-width:600px) { dl { grid-template-columns:1fr } dd { margin-bottom:.5rem }
  main { padding:1.4rem .8rem 3rem } th,td { padding:.4rem .45rem } figure { padding:.4rem }
  td:first-child,th:first-child { position:sticky; left:0; background:var(--card) } }
"""
