/** Draws two curves over time with uPlot, and the timeline of passes on a canvas. */
/* global uPlot */

const NARROW = 6; // pixels: narrower passes have no sides

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** The values between two gaps: no line goes through them, so they get a point. */
const lone = ({ data }, series) =>
  [...data[series].keys()].filter((at) => data[series][at] != null && data[series][at - 1] == null && data[series][at + 1] == null);

/** A curve over the last minutes; gaps stay gaps. */
export class Curve {
  constructor(element, name, most) {
    this.element = element;
    const axis = { stroke: () => colour("quiet"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false } };
    const seconds = (_, values) => values.map((value) => (value === 0 ? "now" : `−${-value} s`));
    this.plot = new uPlot(
      {
        width: element.clientWidth || 300,
        height: 130,
        padding: [6, 14, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false, range: [-300, 0] }, y: { range: (_, __, max) => [0, most ?? Math.max(1, max * 1.1)] } },
        axes: [{ ...axis, values: seconds, size: 26 }, { ...axis, size: 46 }],
        series: [
          {},
          {
            label: name, stroke: () => colour("device"), width: 2,
            points: { show: false, size: 4, width: 0, fill: () => colour("device"), filter: lone },
          },
        ],
      },
      [[0], [null]],
      element,
    );
    new ResizeObserver(() => this.plot.setSize({ width: element.clientWidth, height: 130 })).observe(element);
  }

  /** @param {[number, number|null][]} points (seconds before now, value) */
  show(points) {
    this.plot.setData([points.map(([at]) => at), points.map(([, value]) => value)]);
  }
}

/**
 * The last passes: as long as they took, as high as they had texts. Filled: drafted by devices; hatched: by the edge;
 * outlined: by nobody.
 */
export function drawPasses(canvas, passes, now, length) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio)) [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const floor = height - 16;
  const across = (at) => ((at - (now - length)) / length) * width;
  const total = ({ texts }) => texts.device + texts.edge + texts.nobody;
  const unit = (floor - 4) / Math.max(1, ...passes.map(total));
  for (const pass of passes) {
    const left = across(pass.begin_s);
    const wide = Math.max(2, across(pass.end_s) - left - 1);
    let top = floor;
    for (const by of ["device", "edge", "nobody"]) {
      const high = pass.texts[by] * unit;
      if (!high) continue;
      top -= high;
      box(pen, left, top, wide, high - 1, by);
    }
  }
  pen.fillStyle = colour("quiet");
  pen.font = "11px system-ui, sans-serif";
  for (let back = 0; back < length; back += 2) {
    pen.textAlign = back ? "center" : "right";
    pen.fillText(back ? `−${back} s` : "now", across(now - back), height - 3);
  }
}

function box(pen, left, top, wide, high, by) {
  pen.strokeStyle = pen.fillStyle = colour(by);
  pen.lineWidth = 1.5;
  if (by === "device") return pen.fillRect(left, top, wide, high);
  if (wide >= NARROW) pen.strokeRect(left + 0.75, top + 0.75, wide - 1.5, Math.max(0.5, high - 1.5));
  else pen.fillRect(left, top, wide, 1.5); // two sides would fill it, and it would look like a device's
  if (by === "nobody") return;
  pen.save();
  pen.beginPath();
  pen.rect(left, top, wide, high);
  pen.clip();
  pen.beginPath();
  const floor = top + high; // lines of one grid, so that they go on in the next pass however narrow this one is
  for (let at = Math.ceil((left - high + floor) / 4) * 4 - floor; at < left + wide; at += 4) {
    pen.moveTo(at, floor);
    pen.lineTo(at + high, top);
  }
  pen.stroke();
  pen.restore();
}
