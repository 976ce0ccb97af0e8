import json, subprocess, sys
sys.path.insert(0,'.')
import chat_template_expressions as E
import jinja2
from transformers.utils.chat_template_utils import _cached_compile_jinja_template as comp
import re
def hf(t, v):
    try:
        return {"text": comp(t).render(**v)}
    except Exception as e:
        return {"refused": f"{type(e).__name__}: {e}"}
ts = ["{{ "+e+" }}" for e in E.EXPRESSIONS]+E.STATEMENTS
inp = "".join(json.dumps({"template":t,"variables":E.VARIABLES})+"\n" for t in ts)
out = subprocess.run([sys.argv[1]],input=inp.encode(),stdout=subprocess.PIPE,timeout=100).stdout.decode().split('\n')[:-1]
assert len(out)==len(ts),(len(out),len(ts), ts[len(out)])
bad=0
for t,o in zip(ts,out):
    o=json.loads(o); w=hf(t,E.VARIABLES)
    if o.get("text")!=w.get("text"):
        if "text" in w and "object at 0x" in w["text"]: continue
        bad+=1
        print(repr(t)); print("   wanted",w); print("   got   ",o)
print(len(ts),bad)
