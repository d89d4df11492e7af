-- Decide one request over all its limits, and spend from all or none. The counterpart of core/window.py.
-- KEYS: one sorted set a limit. ARGV, five a key: limit, cost, window (us), bucket width (us), enforced (1 or 0).
-- A member is the sum of all units ever spent up to and with its bucket, its score the bucket's last microsecond; one
-- member that counts no more is kept, so that the sum of what was dropped is known.
-- Returns four numbers a key: admitted, units that count, us until it fits (-1: never), us until the oldest unit ends.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local text = function(number) return string.format('%.0f', number) end
local seen, spend = {}, true

for i, key in ipairs(KEYS) do
  local at = (i - 1) * 5
  local limit, cost = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local window, width = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local newest = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
  local total, last, base, first = 0, 0, 0, 0
  local moment = now
  if newest[1] then
    total, last = tonumber(newest[1]), tonumber(newest[2])
    if last - width + 1 > moment then moment = last - width + 1 end
    local ended = redis.call('ZCOUNT', key, '-inf', text(moment - window))
    if ended > 1 then
      redis.call('ZREMRANGEBYRANK', key, 0, ended - 2)
      ended = 1
    end
    if ended == 1 then base = tonumber(redis.call('ZRANGE', key, 0, 0)[1]) end
    first = ended
  end
  local live, room, wait = total - base, limit - cost, 0
  if live > room then
    if room < 0 then
      wait = -1
    else
      local low, high = first, redis.call('ZCARD', key) - 1
      while low < high do
        local middle = math.floor((low + high) / 2)
        if total - tonumber(redis.call('ZRANGE', key, middle, middle)[1]) <= room then high = middle else low = middle + 1 end
      end
      wait = tonumber(redis.call('ZRANGE', key, low, low, 'WITHSCORES')[2]) + window - now
    end
    if ARGV[at + 5] == '1' then spend = false end
  end
  seen[i] = { moment = moment, total = total, live = live, last = last, wait = wait, first = first }
end

local answer = {}
for i, key in ipairs(KEYS) do
  local at, state = (i - 1) * 5, seen[i]
  local cost, window, width = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if spend and state.wait == 0 then
    local stop = state.moment - state.moment % width + width - 1
    if state.last >= stop and state.live > 0 then
      stop = state.last
      redis.call('ZREM', key, text(state.total))
    end
    redis.call('ZADD', key, text(stop), text(state.total + cost))
    redis.call('PEXPIRE', key, math.ceil((window + stop - now) / 1000) + 1)
    state.live = state.live + cost
  end
  local reset = 0
  if state.live > 0 then
    local oldest = redis.call('ZRANGE', key, state.first, state.first, 'WITHSCORES')
    if oldest[2] then reset = tonumber(oldest[2]) + window - now end
  end
  local admitted = 0
  if state.wait == 0 then admitted = 1 end
  table.insert(answer, admitted)
  table.insert(answer, state.live)
  table.insert(answer, state.wait)
  table.insert(answer, reset)
end
return answer
