// tests/test_web.mjs [PART]: the page build/web/index.html.
//   node      its Worker, run by node: the numbers of build/web/native to the last digit, bad questions, too little memory
//   chromium  a headless Chromium opens the file: both trainings, curves, a question, phone and desktop, dark and light, no error
//             on the console; with TT_WEB_PICTURES=folder its pictures; both trainings once more in Firefox
//   picture   draws bench/web.png
// Without PART all but the picture. What is not there is skipped by name. Last line: "N passed, N failed".
import { readFileSync, writeFileSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { execFileSync, spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { fileURLToPath, pathToFileURL } from 'node:url';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
const PAGE = 'build/web/index.html', NATIVE = 'build/web/native', STEPS = 12, SECONDS = 60, FIREFOX = 'firefox-esr';
let passed = 0, failed = 0;

function check(good, name, why) {
  if (good) { passed++; console.log('ok ' + name); }
  else { failed++; console.log('FAIL ' + name + (why === undefined ? '' : ': ' + why)); }
  return good;
}
const skip = (name, why) => console.log('skip ' + name + ': ' + why);
const page = readFileSync(PAGE, 'latin1');
function part(id) {
  const from = page.indexOf('<script type="text/plain" id="' + id + '">');
  return page.slice(page.indexOf('>', from) + 1, page.indexOf('</script>', from));
}
const binary = id => new Uint8Array(Buffer.from(part(id), 'base64'));

// ---- the Worker in node ----
function worker() {
  const self = {}, source = Buffer.from(part('worker'), 'latin1').toString('utf8');
  new Function('self', source)(self);
  return (name, argument) => new Promise(resolve => {
    self.postMessage = ({ answer }) => resolve(answer);
    self.onmessage({ data: { id: 0, name, argument } });
  });
}
async function opened(megabytes) {
  const call = worker(), base = {};
  for (const name of ['config.json', 'tokenizer.json', 'model.safetensors']) { base['base/' + name] = binary('base/' + name); }
  return { call, first: await call('load', { wasm: binary('web.wasm'), base, megabytes }) };
}
async function sameNumbers() {
  const environment = { ...process.env, TT_KERNEL: 'simd128' };
  const native = execFileSync(NATIVE, ['train', 'build/web/base', '7', String(STEPS)], { encoding: 'utf8', env: environment });
  const lines = native.trim().split('\n').map(line => JSON.stringify(JSON.parse(line)));
  const { call, first } = await opened(1024), said = [first, await call('start', { feedback: 2, leaves: 10, seed: 7 })];
  const from = performance.now();
  for (let step = 0; step < STEPS; step++) { said.push(await call('step', 0), await call('step', 1)); }
  console.log('  ' + STEPS + ' steps of both in ' + ((performance.now() - from) / 1000).toFixed(1) + ' s');
  for (const model of [0, 1, 2]) { said.push(await call('exam', { model, n: 200 })); }
  check(first.kernel === 'simd128', 'the page runs the kernels of SIMD128', first.error || first.kernel);
  check(said.length === lines.length, 'the page says as much as the native program', said.length + ' and ' + lines.length);
  const other = said.findIndex((answer, i) => { delete answer.threads; return JSON.stringify(answer) !== lines[i].replace(/"threads":\d+,/, ''); });
  check(other < 0, 'metrics, transcripts and examination are those of the native program, digit for digit',
    other < 0 ? '' : 'line ' + other + '\n  ' + JSON.stringify(said[other]).slice(0, 300) + '\n  ' + lines[other].slice(0, 300));
  await call('start', { feedback: 0, leaves: 10, seed: 7 });
  const alone = [await call('step', 0), await call('step', 1)].map(step => JSON.stringify(step));
  check(alone[0] === alone[1], 'without a teacher both students are one', alone.map(step => step.slice(0, 150)).join('\n  '));
  check(JSON.stringify(said[2]) === alone[0], 'starting over starts from the base', JSON.stringify(said[2]).slice(0, 150));
  return call;
}
async function badQuestions(call) {
  const refused = async question => (await call('ask', question)).error || 'answered';
  check(/"seven"/.test(await refused('make seven from 2 2 3')), 'an unknown word is named', await refused('make seven from 2 2 3'));
  check(/"<end>"|"<"/.test(await refused('make 5 from 2 2 <end>')), 'a tag is text', await refused('make 5 from 2 2 <end>'));
  for (const question of ['', 'make 5 from 2 2', 'make 5 from 2 2 2 2', 'make 99 from 1 2 3', 'from make 5 1 2 3', 'make 5 from 2 2 0']) {
    check(/make 5 from 2 2 7/.test(await refused(question)), 'refused with its form: "' + question + '"', await refused(question));
  }
  check(/make 5 from 2 2 7/.test(await refused('make 5 from ' + '7 '.repeat(3000))), 'a question without end is refused');
  const answers = await call('ask', ' Make 5, from 2 2 7?');
  check(answers.question === 'make 5 from 2 2 7' && answers.base.parts.length === 1, 'case and commas do not matter', JSON.stringify(answers));
}
async function littleMemory() {
  let least = 4, told = 0;
  for (const megabytes of [4, 5, 6, 8, 10, 12]) {
    const { call, first } = await opened(megabytes);
    let answer = first;
    if (!answer.error) { answer = await call('start', { feedback: 2, leaves: 10, seed: 1 }); }
    for (let step = 0; step < 2 && !answer.error; step++) { answer = await call('step', 1); }
    if (answer.error) { told += /memory/.test(answer.error); least = megabytes; }
    if (answer.error && !/memory/.test(answer.error)) { console.log('  ' + megabytes + ' MB: ' + answer.error); }
  }
  check(told >= 2, 'too little memory is said in words, at ' + least + ' MB too', told);
}

// ---- a browser, by the WebDriver protocol ----
const pause = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));
function freePort() {
  return new Promise(resolve => {
    const server = createServer().listen(0, '127.0.0.1', () => { const { port } = server.address(); server.close(() => resolve(port)); });
  });
}
function there(program) {
  try { return execFileSync('sh', ['-c', 'command -v ' + program], { encoding: 'utf8' }).trim(); } catch { return ''; }
}
async function browser(driver, capabilities) {
  const port = await freePort(), child = spawn(driver, ['--port=' + port], { stdio: 'ignore' });
  const root = 'http://127.0.0.1:' + port;
  const send = async (method, path, body) => {
    const answer = await (await fetch(root + path, { method, body: body && JSON.stringify(body) })).json();
    if (answer.value && answer.value.error) { throw new Error(path + ': ' + answer.value.message.split('\n')[0]); }
    return answer.value;
  };
  for (let i = 0; ; i++) {
    try { await send('GET', '/status'); break; } catch (error) { if (i > 100) { child.kill(); throw error; } }
    await pause(200);
  }
  let id;
  try { id = (await send('POST', '/session', { capabilities: { alwaysMatch: capabilities } })).sessionId; } catch (error) { child.kill(); throw error; }
  const at = '/session/' + id;
  const run = (script, ...args) => send('POST', at + '/execute/sync', { script, args });
  return pageOf(run, {
    open: url => send('POST', at + '/url', { url }),
    cdp: (cmd, params) => send('POST', at + '/goog/cdp/execute', { cmd, params }),
    log: () => send('POST', at + '/se/log', { type: 'browser' }),
    close: async () => { await send('DELETE', at).catch(() => 0); child.kill(); },
  });
}
// What is done with a page in any browser.
function pageOf(run, more) {
  return {
    ...more,
    run,
    text: element => run('return document.getElementById(arguments[0]).textContent', element),
    press: element => run('document.getElementById(arguments[0]).click()', element),
    until: async (script, seconds) => {
      for (const end = Date.now() + 1000 * seconds; Date.now() < end; await pause(100)) { if (await run('return ' + script)) { return true; } }
      return false;
    },
  };
}
const address = () => pathToFileURL(PAGE).href;
const chromium = () => browser('chromedriver', {
  'goog:chromeOptions': { binary: there('chromium') || there('google-chrome'), args: ['--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--disable-dev-shm-usage'] },
  'goog:loggingPrefs': { browser: 'ALL' },
});

async function picture(b, name) {
  if (!process.env.TT_WEB_PICTURES) { return; }
  mkdirSync(process.env.TT_WEB_PICTURES, { recursive: true });
  const { data } = await b.cdp('Page.captureScreenshot', { captureBeyondViewport: true, clip: { x: 0, y: 0, ...(await b.run('return {width: innerWidth, height: document.documentElement.scrollHeight}')), scale: 1 } });
  writeFileSync(process.env.TT_WEB_PICTURES + '/' + name + '.png', Buffer.from(data, 'base64'));
}
async function asWide(b, width, scheme) {
  await b.cdp('Emulation.setDeviceMetricsOverride', { width, height: 900, deviceScaleFactor: 1, mobile: width < 500 });
  await b.cdp('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: scheme }] });
  await pause(300);
}
// From opening to the examination: true for both browsers.
async function trains(b, who) {
  await b.open(address());
  const loaded = Date.now();
  if (!check(await b.until('!document.getElementById("train").disabled', 20), who + ': the page opens from file://', await b.text('trouble'))) { return; }
  check(/✗/.test(await b.text('answer-base')), who + ': the base\'s wrong answer is there, and marked', await b.text('answer-base'));
  await b.press('train');
  const first = await b.until('history.thinktuning.length > 0 || broken', 20);
  const wait = (Date.now() - loaded) / 1000;      /* below 3 s on a quiet core; a busy machine may take longer */
  console.log('  first step of both after ' + wait.toFixed(1) + ' s');
  check(first && wait < 15 && !(await b.run('return broken')), who + ': a step of both is on the screen', await b.text('trouble'));
  const seen = await b.until('lately("thinktuning", "correction") > 0.5 || broken || !running', 4 * SECONDS) && await b.run('return lately("thinktuning", "correction") > 0.5');
  console.log('  correction above 0.5 at step ' + await b.run('return history.thinktuning.length') + ', after ' + (await b.run('return seconds')).toFixed(1) + ' s of training');
  check(seen && await b.run('return seconds') < SECONDS, who + ': within a minute ThinkTuning corrects more than half of its wrong answers', await b.run('return JSON.stringify(history.thinktuning.map(s => s.correction))'));
  check(await b.run('return history.grpo.every(s => s.correction < 0.2)'), who + ': GRPO does not', await b.run('return JSON.stringify(history.grpo.map(s => s.correction))'));
}
// A run may have ended meanwhile: another one then.
async function train(b) { await b.run('if (!running) { document.getElementById("train").click(); }'); }
async function whileTraining(b) {
  await train(b);
  const before = await b.run('return document.querySelector("#chart-correction path.thinktuning:not(.raw)").getAttribute("d").length');
  await b.run('document.getElementById("question").value = "make 3 from 9 4 2"');
  await b.press('asks');
  check(await b.until('asked === "make 3 from 9 4 2"', 30), 'Chromium: a question is answered during training', await b.text('refusal'));
  await b.run('document.getElementById("question").value = "make tea from 9 4 2"');
  await b.press('asks');
  check(await b.until('/"tea"/.test(document.getElementById("refusal").textContent)', 30), 'Chromium: an unknown word is named on the page', await b.text('refusal'));
  await train(b);
  const count = await b.run('return history.thinktuning.length');
  await b.until('history.thinktuning.length > ' + count, 30);
  check((await b.run('return document.querySelector("#chart-correction path.thinktuning:not(.raw)").getAttribute("d").length')) > before, 'Chromium: the curves move');
  await train(b);
  await b.press('train');
  await pause(3000);
  const paused = await b.run('return history.thinktuning.length');
  await pause(2000);
  check((await b.run('return history.thinktuning.length')) === paused && (await b.text('train')) === 'Go on', 'Chromium: Pause pauses', await b.text('train'));
  await train(b);
  check(await b.until('!document.getElementById("exam").hidden || broken', 6 * SECONDS), 'Chromium: the run ends with an examination', await b.text('trouble'));
  await b.run('document.getElementById("seed").value = 2; document.getElementById("seed").dispatchEvent(new Event("input"))');
  check(/Start over/.test(await b.text('changed')), 'Chromium: a new seed wants a new start', await b.text('changed'));
  await train(b);
  await b.press('restart');
  check(await b.until('settings.seed === 2 && running && history.grpo.length < 20', 60), 'Chromium: Start over starts over', await b.text('status'));
  check(await b.until('!document.getElementById("exam").hidden || broken', 6 * SECONDS), 'Chromium: and comes to its end', await b.text('trouble'));
  const table = await b.run('return [...document.querySelectorAll("#exam tbody tr")].map(row => row.textContent).join(" | ")');
  console.log('  ' + table);
}
async function everyWidth(b) {
  for (const width of [1280, 390]) {
    for (const scheme of ['light', 'dark']) {
      await asWide(b, width, scheme);
      const over = await b.run('return [...document.querySelectorAll("main *")].filter(e => !e.closest(".wide") && !e.closest("svg") && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + "." + e.className).join(" ")');
      check(over === '' && await b.run('return document.documentElement.scrollWidth <= innerWidth'), 'Chromium: nothing hangs over at ' + width + ' px, ' + scheme, over);
      const contrast = await b.run(`const value = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(x => { x /= 255; return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)/.test(c)) { return c; } } return 'rgb(255, 255, 255)'; };
        return [...document.querySelectorAll('main *')].filter(e => !e.closest('svg') && !e.disabled && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.getClientRects().length).map(e => { const [a, b] = [value(getComputedStyle(e).color), value(ground(e))].sort((x, y) => y - x); return [(a + 0.05) / (b + 0.05), e.className + ' ' + e.textContent.slice(0, 30)]; }).filter(x => x[0] < 4.5).map(x => x.join(' ')).join('; ')`);
      check(contrast === '', 'Chromium: all words have a contrast of 4.5, ' + width + ' px, ' + scheme, contrast);
      await picture(b, width + '-' + scheme);
    }
  }
}
// A transcript whose marks are known: a wrong answer, a check with a wrong sum, a false "yes", a number that is not the question's.
async function marks(b) {
  const seen = await b.run(`const box = document.createElement('div');
    box.append(...transcript('make -2 from 6 1 5', { parts: [' answer +6 -1 +5', '\\n\\n wait , check : +6 =6 -1 =5 +5 =9 need -2 . no , flip 6 : -6 =-6 +1 =-5 +3 =-2 need -2 . yes .\\n\\n so answer -6 -1 +5'] }));
    return [...box.querySelectorAll('.no, .yes')].map(e => e.textContent.trim()).join(' ') + ' | ' + box.querySelectorAll('.teacher').length`);
  check(seen === '✗ =9 ✓ +3 ✗ ✓ | 1', 'Chromium: wrong sums, verdicts, numbers and answers are marked', seen);
}
async function lacking(b, script, name, words) {
  const { identifier } = await b.cdp('Page.addScriptToEvaluateOnNewDocument', { source: script });
  await b.open('about:blank');
  await b.open(address());
  check(await b.until('!document.getElementById("trouble").hidden', 20) && words.test(await b.text('trouble')), 'Chromium: ' + name, await b.text('trouble'));
  await b.cdp('Page.removeScriptToEvaluateOnNewDocument', { identifier });
}
async function inChromium() {
  if (!there('chromedriver') || !(there('chromium') || there('google-chrome'))) { return skip('the page in Chromium', 'no chromium and chromedriver'); }
  const b = await chromium();
  try {
    await asWide(b, 1280, 'light');
    await trains(b, 'Chromium');
    await whileTraining(b);
    await marks(b);
    await everyWidth(b);
    const log = (await b.log()).filter(entry => entry.level !== 'INFO' && entry.level !== 'DEBUG');
    check(log.length === 0, 'Chromium: nothing on the console', JSON.stringify(log));
    await lacking(b, 'delete window.Worker', 'without Workers there is a sentence', /no Workers/);
    await lacking(b, 'WebAssembly.validate = () => false', 'without SIMD there is a sentence', /no WebAssembly SIMD/);
    await b.open('about:blank');
    await b.open(address() + '#memory=8');
    if (await b.until('!document.getElementById("train").disabled', 20)) { await b.press('train'); }
    check(await b.until('!document.getElementById("trouble").hidden', 60) && /memory/.test(await b.text('trouble')), 'Chromium: out of memory is said in words', await b.text('trouble'));
  } finally {
    await b.close();
  }
}
// Firefox speaks WebDriver BiDi itself, over a WebSocket.
async function firefox() {
  const port = await freePort(), profile = mkdtempSync(tmpdir() + '/tt-firefox-');
  const child = spawn(FIREFOX, ['--headless', '--profile', profile, '--remote-debugging-port=' + port], { stdio: 'ignore', env: { ...process.env, HOME: profile } });
  const waiting = new Map();
  let socket, calls = 0;
  const close = async () => { socket && socket.close(); child.kill(); await pause(1000); rmSync(profile, { recursive: true, force: true }); };
  for (let i = 0; !socket; i++) {
    await pause(300);
    const wish = new WebSocket('ws://127.0.0.1:' + port + '/session');
    if (await new Promise(resolve => { wish.onopen = () => resolve(true); wish.onerror = () => resolve(false); })) { socket = wish; }
    else if (i > 100) { await close(); throw new Error('Firefox does not listen'); }
  }
  socket.onmessage = ({ data }) => { const answer = JSON.parse(data); if (waiting.has(answer.id)) { waiting.get(answer.id)(answer); waiting.delete(answer.id); } };
  const send = async (method, params) => {
    const answer = await new Promise(resolve => { waiting.set(++calls, resolve); socket.send(JSON.stringify({ id: calls, method, params })); });
    if (answer.type === 'error') { throw new Error(method + ': ' + answer.message); }
    return answer.result;
  };
  await send('session.new', { capabilities: {} });
  const context = (await send('browsingContext.getTree', {})).contexts[0].context;
  const run = async (script, ...args) => (await send('script.callFunction', { functionDeclaration: 'function () { ' + script + ' }', arguments: args.map(value => ({ type: 'string', value })), target: { context }, awaitPromise: true })).result.value;
  return pageOf(run, { open: url => send('browsingContext.navigate', { context, url, wait: 'complete' }), close });
}
async function inFirefox() {
  if (!there(FIREFOX)) { return skip('the page in Firefox', 'no firefox-esr'); }
  if (typeof WebSocket === 'undefined') { return skip('the page in Firefox', 'this node has no WebSocket'); }
  const b = await firefox();
  try { await trains(b, 'Firefox'); } finally { await b.close(); }
}

// The controls, both students and the curves after a run, for the README.
async function drawPicture() {
  const b = await chromium();
  try {
    await asWide(b, 1180, 'light');
    await b.open(address());
    await b.until('!document.getElementById("train").disabled', 20);
    await b.press('train');
    check(await b.until('!document.getElementById("exam").hidden || broken', 6 * SECONDS) && !(await b.run('return broken')), 'a run ends', await b.text('trouble'));
    const clip = await b.run('const at = id => document.getElementById(id).getBoundingClientRect(); return {x: 14, y: at("arm-grpo").top + scrollY - 12, width: innerWidth - 28, height: document.querySelector("figure").getBoundingClientRect().bottom - at("arm-grpo").top + 24, scale: 1}');
    const { data } = await b.cdp('Page.captureScreenshot', { captureBeyondViewport: true, clip });
    writeFileSync('bench/web.png', Buffer.from(data, 'base64'));
    check(Buffer.from(data, 'base64').length < 200e3, 'bench/web.png is below 200 KB', Buffer.from(data, 'base64').length);
  } finally {
    await b.close();
  }
}

const only = process.argv[2];
check(page.length <= 3e6, 'the page has at most 3 MB', page.length);
check(!/(src|href)\s*=\s*["'](https?:)?\/\//.test(page), 'the page loads nothing from outside');
if (!only || only === 'node') {
  const call = await sameNumbers();
  await badQuestions(call);
  await littleMemory();
}
if (!only || only === 'chromium') {
  await inChromium();
  await inFirefox();
}
if (only === 'picture') { await drawPicture(); }
console.log(passed + ' passed, ' + failed + ' failed');
process.exit(failed ? 1 : 0);
