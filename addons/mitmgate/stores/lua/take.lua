-- Decide one request over all its limits: spend from all or from none. The counterpart of core/window.py.
--
-- KEYS: one list a limit; then those that earlier calls have spent of, for requests that were denied all the same; then
-- those that an earlier call has spent of for this request, which are given back where it is denied; then the clock.
-- ARGV: how many keys are of the first kind, and how many of the second; six for each limit: limit, cost, window (us), bucket width (us),
-- enforced (1 or 0), and the units that whoever asks has admitted without us, which count first; three for each of the
-- others: the time (us) that the earlier call returned, cost, bucket width.
-- With a width of 1 the list holds the time (us) of each unit, oldest first. With a larger one it holds the units that
-- were dropped, and then, for each bucket that has units, the bucket's last microsecond and the units spent up to and
-- with it, dropped ones included.
-- Returns five numbers a limit: admitted (1 or 0), units that count, us until it fits (-1: never), us until the oldest
-- unit ends, the time of the units that were spent (0: none). Times are below 2^53, so a Lua number holds them exactly; only its text would not, hence text().

-- The server's time of day may be set. Where it was set back, every unit would count for so much longer: what is found to
-- lie ahead of it is kept beside it (us), and added. Where it was set on, the server itself has dropped what had expired.
local AHEAD = 1000000
local clock = redis.call('TIME')
local ahead = tonumber(redis.call('GET', KEYS[#KEYS]) or 0)
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2]) + ahead

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

-- Keep the clock at the newest unit of a key where that is more than AHEAD of it.
local function set_clock(newest)
  if newest > now + AHEAD then
    ahead = ahead + newest - now
    redis.call('SET', KEYS[#KEYS], text(ahead))
    return true
  end
  return false
end

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

function log.spend(w, units)
  local at = w.live > 0 and math.max(now, element(w.key, -1)) or now
  for _ = 1, units do redis.call('RPUSH', w.key, text(at)) end
  w.oldest = w.oldest or at
  return at
end

function log.newest(w)
  return element(w.key, -1)
end

function log.give_back(key, at, units)
  redis.call('LREM', key, -units, text(at))
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

function buckets.spend(w, units)
  local last = now - now % w.width + w.width - 1
  if w.count > 0 and w.last >= last then
    last = w.last
    redis.call('LSET', w.key, -1, text(w.base + w.live + units))
  else
    if w.count == 0 then redis.call('RPUSH', w.key, '0') end
    redis.call('RPUSH', w.key, text(last), text(w.base + w.live + units))
    w.count = w.count + 1
  end
  w.last = last
  w.oldest = w.oldest or last
  return last
end

function buckets.newest(w)
  return element(w.key, -2) - w.width + 1
end

function buckets.give_back(key, at, units)
  local index, length = -1, redis.call('LLEN', key)
  while index > -length and element(key, index - 1) > at do index = index - 2 end
  if index <= -length or element(key, index - 1) < at then return end  -- it has ended
  for later = index, -1, 2 do redis.call('LSET', key, later, text(element(key, later) - units)) end
  if element(key, index) == element(key, index - 2) then  -- nothing is left in the bucket
    redis.call('LSET', key, index, '-')
    redis.call('LSET', key, index - 1, '-')
    redis.call('LREM', key, 2, '-')
    if length == 3 then redis.call('DEL', key) end
  end
end

local function spend(w, units)
  local newest = w.kind.spend(w, units)
  set_clock(newest - w.width + 1)
  w.live = w.live + units
  redis.call('PEXPIRE', w.key, text(math.ceil((newest + w.window - now) / 1000) + 1))
  return newest
end

local function kind_of(width)
  return width == 1 and log or buckets
end

local limits, returned = tonumber(ARGV[1]), tonumber(ARGV[2])

local function give_back(first, last)
  for i = first, last do
    local a = 2 + limits * 6 + (i - limits - 1) * 3
    kind_of(tonumber(ARGV[a + 3])).give_back(KEYS[i], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]))
  end
end

give_back(limits + 1, limits + returned)

local windows, admitted, paid = {}, true, {}

local function decide()
  windows, admitted = {}, true
  for i = 1, limits do
    local a = 2 + (i - 1) * 6
    local w = { key = KEYS[i], cost = tonumber(ARGV[a + 2]), window = tonumber(ARGV[a + 3]), width = tonumber(ARGV[a + 4]) }
    w.wait, w.room = 0, tonumber(ARGV[a + 1]) - w.cost
    w.kind = kind_of(w.width)
    w.kind.look(w)
    if w.oldest and w.oldest > now + AHEAD and set_clock(w.kind.newest(w)) then return false end
    local owed = tonumber(ARGV[a + 6])
    if owed > 0 and not paid[i] then
      spend(w, owed)
      paid[i] = true
    end
    if w.live > w.room then
      w.wait = w.room < 0 and -1 or w.kind.decisive(w) + w.window - now
      if w.wait > w.window + w.width + AHEAD and set_clock(w.kind.newest(w)) then return false end
      if ARGV[a + 5] == '1' then admitted = false end
    end
    windows[i] = w
  end
  return true
end

if not decide() then
  now = tonumber(clock[1]) * 1000000 + tonumber(clock[2]) + ahead
  decide()
end
if not admitted then give_back(limits + returned + 1, #KEYS - 1) end

local answer = {}
for _, w in ipairs(windows) do
  local spent = admitted and w.wait == 0 and spend(w, w.cost) or 0
  local n = #answer
  answer[n + 1] = w.wait == 0 and 1 or 0
  answer[n + 2] = w.live
  answer[n + 3] = w.wait
  answer[n + 4] = w.oldest and w.oldest + w.window - now or 0
  answer[n + 5] = spent
end
return answer
