// The page of StatusApp: shows lanes and jobs live, and operates them.
//
// Here each part of the page gets what one does with it. A part has its state and draws it: schedule() lets all parts
// draw, at most once a frame, and they write only what differs. Each file is about one noun, and imports no file that
// imports it.

import { cancelJob, closedJob, copyId, followAddress, openJob, paintDetail } from "./dialog.js";
import { drawsWith, on, schedule, set, small, ui } from "./document.js";
import { paintFigures } from "./figures.js";
import { choose, list } from "./jobs.js";
import { clickLane, paintLanes } from "./lanes.js";
import { isHalted } from "./now.js";
import { keyInRows, paintRows, rowOf } from "./rows.js";
import { connect, toggleFreeze } from "./stream.js";

drawsWith(paintRows, paintFigures, paintLanes, paintDetail); // rows first: they measure, and nothing has been written yet

function chooseJobs(filter, query) {
  for (const pill of ui.pills.children) set(pill, "aria-pressed", pill.value === filter);
  choose(filter, query);
}

let searchTimer = null;
ui.search.oninput = () => {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(() => chooseJobs(list.filter, ui.search.value.trim()), 250);
};
ui.pills.onclick = ({ target }) => target.closest("button") && chooseJobs(target.closest("button").value, list.query);
ui.freeze.onclick = toggleFreeze;
ui.lanes.onclick = clickLane;
ui.allLanes.onclick = () => {
  set(ui.allLanes, "aria-expanded", !on(ui.allLanes, "aria-expanded"));
  schedule();
};
ui.rows.onclick = ({ target }) => rowOf(target) && openJob(rowOf(target).job.id); // what is between rows is none
ui.rows.onkeydown = keyInRows;
ui.scroller.onscroll = paintRows; // in this frame: in the next one would be a blank in this one
ui.job.onclose = closedJob;
ui.jobCancel.onclick = cancelJob;
ui.jobCopy.onclick = copyId;
for (const button of document.querySelectorAll("[data-close]")) button.onclick = () => button.closest("dialog").close();
small.onchange = schedule;
addEventListener("hashchange", followAddress);
document.addEventListener("visibilitychange", connect);
setInterval(() => document.hidden || isHalted() || schedule(), 1000);
connect();
followAddress();
