#!/usr/bin/env bash
# Ask a server of its own for every kind of error that clients can meet, with curl, and print what comes back.
#   examples/errors.sh [flags of trimtab serve, such as --base my/model --guide runs/polite]
# One answer may run and none may wait, and each has three seconds, so that 429 and 504 are quickly met.
set -euo pipefail
port=${PORT:-8011}
url=http://127.0.0.1:$port
log=$(mktemp)
trimtab serve "$@" --port "$port" --api-key secret --served-model-name model \
  --max-num-seqs 1 --max-queued-requests 0 --request-timeout 3 2>"$log" &
server=$!
trap 'kill $server 2>/dev/null || true; rm -f "$log"' EXIT
until curl -sf "$url/ready" >/dev/null; do
  kill -0 $server 2>/dev/null || { cat "$log"; exit 1; }
  sleep 0.2
done

ask() { # what it shows, then arguments of curl
  printf '\n# %s\n' "$1"
  shift
  curl -s -w '\n%{http_code}%header{retry-after}\n' "$@" | sed -E '$s/^([0-9]{3})(.+)$/\1, Retry-After: \2/'
}
key=(-H 'authorization: Bearer secret')
json=("${key[@]}" -H 'content-type: application/json')
chat() { # what it shows, then fields of the request
  ask "$1" "${json[@]}" "$url/v1/chat/completions" -d "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], $2}"
}

chat 'a value out of its bounds' '"temperature": 3'
chat 'a key of guidance that there is not' '"guidance": {"strenght": 2}'
chat 'an objective that no guide has' '"guidance": {"weights": {"helpfull": 1}}'
chat 'a weight that is no number' '"guidance": {"strength": "much"}'
chat 'what cannot be honoured' '"tools": [{"type": "function"}]'
chat 'more tokens than there is room for' '"max_tokens": 100000'
chat 'more answers than can ever run' '"n": 2'
ask 'no JSON' "${json[@]}" "$url/v1/chat/completions" -d '{"messages": '
ask 'no key' "$url/v1/models"
ask 'a wrong key' -H 'authorization: Bearer wrong' "$url/v1/models"
chat 'no such model' '"model": "modle"'
ask 'no such answer' "${json[@]}" "$url/v1/generations/chatcmpl-0/guidance" -d '{"strength": 2}'
ask 'no such route' "${key[@]}" "$url/v1/embeddings"
ask 'another method' "${key[@]}" "$url/v1/chat/completions"
head -c 5000000 /dev/zero | tr '\0' ' ' >"$log.body"
ask 'a body that is too long' "${json[@]}" -H 'expect:' "$url/v1/chat/completions" --data-binary "@$log.body"
rm -f "$log.body"
ask 'another type of body' "${key[@]}" -H 'content-type: text/plain' "$url/v1/chat/completions" -d 'Hi'
ask 'headers that are too long' "${key[@]}" -H "x-long: $(head -c 60000 /dev/zero | tr '\0' 'x')" "$url/v1/models"

long='"max_tokens": 4000, "ignore_eos": true'
chat 'an answer that takes longer than the server allows' "$long" >"$log.late" &
late=$!
sleep 1
chat 'as many answers run and wait as may' '"max_tokens": 1'
wait $late
cat "$log.late"
rm -f "$log.late"

chat '' "$long" >/dev/null &
sleep 1
kill -TERM $server
sleep 0.5
chat 'a server that ends' '"max_tokens": 1'
