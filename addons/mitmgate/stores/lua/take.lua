-- Decide one request over all its limits: spend from all or from none. The counterpart of core/window.py.
--
-- KEYS: one list a limit. ARGV, five a key: limit, cost, window (us), bucket width (us), enforced (1 or 0).
-- With a width of 1 the list holds the time (us) of each unit, oldest first. With a larger one it holds the units that
-- were dropped, and then, for each bucket that has units, the bucket's last microsecond and the units spent up to and
-- with it, dropped ones included.
-- Returns four numbers a key: admitted (1 or 0), units that count, us until it fits (-1: never), us until the oldest
-- unit ends. Times are below 2^53, so a Lua number holds them exactly; only its text would not, hence text().

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function text(number)
  return string.format('%.0f', number)
end

local function element(key, index)
  return tonumber(redis.call('LINDEX', key, index))
end

-- The number of entries, of count in steps of stride from first on, whose value is at most bound. They ascend, and
-- mostly few are: gallop, then bisect.
local function leading(key, first, stride, count, bound)
  local low, step = 0, 1
  while low + step <= count and element(key, first + (low + step - 1) * stride) <= bound do
    low, step = low + step, step * 2
  end
  local high = math.min(low + step - 1, count)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if element(key, first + middle * stride) <= bound then low = middle + 1 else high = middle end
  end
  return low
end

-- Each kind of window: look(w) drops what counts no more, sets w.live to the units that count, and w.oldest to the time
-- of the first; decisive(w) is the time of the unit that must end before at most w.room count; spend(w) adds w.cost units
-- and returns their time, held at the newest unit where the clock ran backwards.
local log, buckets = {}, {}

function log.look(w)
  local count = redis.call('LLEN', w.key)
  if count > 0 then
    w.oldest = element(w.key, 0)
    if w.oldest <= now - w.window then
      local dead = leading(w.key, 0, 1, count, now - w.window)
      redis.call('LTRIM', w.key, dead, -1)
      count = count - dead
      w.oldest = count > 0 and element(w.key, 0)
    end
  end
  w.live = count
end

function log.decisive(w)
  return element(w.key, w.live - w.room - 1)
end

function log.spend(w)
  local at = w.live > 0 and math.max(now, element(w.key, -1)) or now
  for _ = 1, w.cost do redis.call('RPUSH', w.key, text(at)) end
  w.oldest = w.oldest or at
  return at
end

function buckets.look(w)
  local count = math.floor(redis.call('LLEN', w.key) / 2)
  w.live, w.base, w.count = 0, 0, 0
  if count > 0 then
    w.last = element(w.key, -2)
    w.oldest = element(w.key, 1)
    if w.oldest <= now - w.window then
      local dead = leading(w.key, 1, 2, count, now - w.window)
      -- The units up to and with the last dropped bucket stand where the units dropped have to.
      redis.call('LTRIM', w.key, 2 * dead, -1)
      count = count - dead
      if count == 0 then redis.call('DEL', w.key) end
      w.oldest = count > 0 and element(w.key, 1)
    end
  end
  if count > 0 then
    w.base, w.count = element(w.key, 0), count
    w.live = element(w.key, -1) - w.base
  end
end

function buckets.decisive(w)
  return element(w.key, 1 + 2 * leading(w.key, 2, 2, w.count, w.base + w.live - w.room - 1))
end

function buckets.spend(w)
  local last = now - now % w.width + w.width - 1
  if w.count > 0 and w.last >= last then
    last = w.last
    redis.call('LSET', w.key, -1, text(w.base + w.live + w.cost))
  else
    if w.count == 0 then redis.call('RPUSH', w.key, '0') end
    redis.call('RPUSH', w.key, text(last), text(w.base + w.live + w.cost))
  end
  w.oldest = w.oldest or last
  return last
end

local windows, spend = {}, true
for i, key in ipairs(KEYS) do
  local a = (i - 1) * 5
  local w = { key = key, cost = tonumber(ARGV[a + 2]), window = tonumber(ARGV[a + 3]), width = tonumber(ARGV[a + 4]) }
  w.wait, w.room = 0, tonumber(ARGV[a + 1]) - w.cost
  w.kind = w.width == 1 and log or buckets
  w.kind.look(w)
  if w.live > w.room then
    w.wait = w.room < 0 and -1 or w.kind.decisive(w) + w.window - now
    if ARGV[a + 5] == '1' then spend = false end
  end
  windows[i] = w
end

local answer = {}
for _, w in ipairs(windows) do
  if spend and w.wait == 0 then
    local newest = w.kind.spend(w)
    w.live = w.live + w.cost
    redis.call('PEXPIRE', w.key, text(math.ceil((newest + w.window - now) / 1000) + 1))
  end
  local n = #answer
  answer[n + 1] = w.wait == 0 and 1 or 0
  answer[n + 2] = w.live
  answer[n + 3] = w.wait
  answer[n + 4] = w.oldest and w.oldest + w.window - now or 0
end
return answer
