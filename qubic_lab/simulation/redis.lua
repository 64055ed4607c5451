-- The commands of a Redis server on Lua tables, as far as this project uses them; `redis.py` says what for. The argument
-- has Python's functions `decode` (JSON) and `sha1`. Nothing here goes over a table in the order of `pairs`, which
-- differs from process to process: where an order can be seen, an array has it. Integers are exact up to 2^53.
local host = ...
jit.off() -- scripts make too many closures and texts: traces of them are begun, dropped and begun again
local floor, format, insert, remove, concat = math.floor, string.format, table.insert, table.remove, table.concat
local now_us, now_ms = 0, 0
local memory_bytes, refusal = 0, nil -- refusal: the error of commands that use memory, or of all that write
local every_write, changed = false, false -- whether all that write are refused; whether this call has written
local store, keys -- store.due: a queue of keys that are to expire
local events, watched, listeners = {}, {}, {} -- what Python asked to hear of: streams, and channels with their numbers
local scripts, decoded = {}, {}
local commands = {}

-- Adds an event, of three parts.
local function tell(kind, name, text)
  insert(events, kind)
  insert(events, name)
  insert(events, text)
end

local function fail(text)
  error({err = text}, 0)
end

local function text_of(value)
  if type(value) ~= 'number' then
    return value
  end
  if value ~= floor(value) then
    return format('%.17g', value)
  end
  return value > -1e14 and value < 1e14 and tostring(value) or format('%.0f', value)
end

local function integer(value)
  if not text_of(value):find('^-?%d+$') then
    fail('ERR value is not an integer or out of range')
  end
  return tonumber(value)
end

local function find_any(key)
  local found = keys[key]
  if found and found.expires and found.expires <= now_ms then
    keys[key] = nil
    return nil
  end
  return found
end

local function find(key, kind)
  local found = find_any(key)
  if found and found.kind ~= kind then
    fail('WRONGTYPE Operation against a key holding the wrong kind of value')
  end
  return found
end

local function put(key, object)
  keys[key] = object
  return object
end

-- What comes at the end and mostly goes at the beginning: `items` from place `first` to `last`. Old places are reused in
-- time, so that all stay in the array part of the table.
local function new_queue()
  return {items = {}, first = 1, last = 0}
end

local function push(queue, item)
  queue.last = queue.last + 1
  queue.items[queue.last] = item
end

local function drop_first(queue)
  local items, first, last = queue.items, queue.first, queue.last
  items[first] = false
  queue.first = first + 1
  if first > 32 and 2 * first > last then
    for place = first + 1, last do
      items[place - first] = items[place]
    end
    for place = last, math.max(last - first + 1, 1), -1 do
      items[place] = nil
    end
    queue.first, queue.last = 1, last - first
  end
end

local function expire(key, object, at_ms)
  object.expires = at_ms
  push(store.due, {key, at_ms})
end

-- Members in the order in which they came, except that the last one takes the place of one that goes.
local function new_bag(kind)
  return {kind = kind, order = {}, place = {}, values = {}, size = 0}
end

local function bag_put(bag, name, value)
  local is_new = bag.place[name] == nil
  if is_new then
    bag.size = bag.size + 1
    bag.order[bag.size], bag.place[name] = name, bag.size
  end
  bag.values[name] = value
  return is_new
end

local function bag_drop(key, bag, name)
  local place = bag.place[name]
  if not place then
    return 0
  end
  local last = bag.order[bag.size]
  bag.order[place], bag.place[last] = last, place
  bag.order[bag.size], bag.place[name], bag.values[name] = nil, nil, nil
  bag.size = bag.size - 1
  if bag.size == 0 then
    keys[key] = nil
  end
  return 1
end

-- Strings and keys

function commands.PING()
  return {ok = 'PONG'}
end

function commands.TIME()
  local seconds = floor(now_us / 1e6)
  return {text_of(seconds), text_of(now_us - seconds * 1e6)}
end

function commands.INFO(section)
  if section == 'server' then
    return '# Server\r\nredis_version:8.0.0\r\n'
  end
  return '# Memory\r\nused_memory:' .. text_of(memory_bytes) .. '\r\n'
end

function commands.GET(key)
  local found = find(key, 'string')
  return found and found.value or false
end

function commands.SET(key, value, unit, time)
  local object = put(key, {kind = 'string', value = text_of(value)})
  if unit then
    unit = unit:upper()
    if unit ~= 'EX' and unit ~= 'PX' then
      fail('ERR syntax error')
    end
    expire(key, object, now_ms + integer(time) * (unit == 'EX' and 1000 or 1))
  end
  return {ok = 'OK'}
end

function commands.INCR(key)
  local object = find(key, 'string') or put(key, {kind = 'string', value = '0'})
  local number = integer(object.value) + 1
  object.value = text_of(number)
  return number
end

function commands.DEL(...)
  local gone = 0
  for _, key in ipairs({...}) do
    if find_any(key) then
      keys[key] = nil
      gone = gone + 1
    end
  end
  return gone
end

function commands.EXISTS(...)
  local found = 0
  for _, key in ipairs({...}) do
    found = found + (find_any(key) and 1 or 0)
  end
  return found
end

function commands.PEXPIRE(key, time)
  local object = find_any(key)
  if not object then
    return 0
  end
  time = integer(time)
  if time <= 0 then
    keys[key] = nil
  else
    expire(key, object, now_ms + time)
  end
  return 1
end

function commands.PTTL(key)
  local object = find_any(key)
  return not object and -2 or not object.expires and -1 or object.expires - now_ms
end

function commands.KEYS(pattern)
  pattern = '^' .. pattern:gsub('[%^%$%(%)%%%.%[%]%+%-]', '%%%0'):gsub('%*', '.*'):gsub('%?', '.') .. '$'
  local names = {}
  for name in pairs(keys) do
    if name:find(pattern) and find_any(name) then
      insert(names, name)
    end
  end
  table.sort(names)
  return names
end

-- All at once, which SCAN may do.
function commands.SCAN(_, _, pattern)
  return {'0', commands.KEYS(pattern)}
end

-- A form of our own: only RESTORE here can read it.
local function packed(value, out)
  if type(value) == 'table' then
    local names = {}
    for name in pairs(value) do
      insert(names, name)
    end
    table.sort(names, function(a, b) return type(a) .. tostring(a) < type(b) .. tostring(b) end)
    insert(out, 't' .. #names .. ':')
    for _, name in ipairs(names) do
      packed(name, out)
      packed(value[name], out)
    end
  elseif type(value) == 'string' then
    insert(out, 's' .. #value .. ':' .. value)
  else
    insert(out, (type(value) == 'number' and 'n' or 'b') .. (value == true and 1 or value and text_of(value) or 0) .. ':')
  end
  return out
end

local function unpacked(text, place)
  local kind, number, after = text:match('^(%a)([^:]*):()', place)
  number = tonumber(number)
  if kind == 's' then
    return text:sub(after, after + number - 1), after + number
  elseif kind ~= 't' then
    return kind == 'n' and number or kind == 'b' and number == 1, after
  end
  local value, name = {}, nil
  for _ = 1, number do
    name, after = unpacked(text, after)
    value[name], after = unpacked(text, after)
  end
  return value, after
end

function commands.DUMP(key)
  local object = find_any(key)
  if not object then
    return false
  end
  local expires = object.expires
  object.expires = nil
  local text = concat(packed(object, {}))
  object.expires = expires
  return text
end

function commands.RESTORE(key, time, text)
  if find_any(key) then
    fail('BUSYKEY Target key name already exists.')
  end
  if text:sub(1, 1) ~= 't' then
    fail('ERR DUMP payload version or checksum are wrong')
  end
  local object = put(key, (unpacked(text, 1)))
  if integer(time) > 0 then
    expire(key, object, now_ms + integer(time))
  end
  return {ok = 'OK'}
end

-- Hashes

function commands.HGET(key, name)
  local found = find(key, 'hash')
  return found and found.values[name] or false
end

function commands.HMGET(key, ...)
  local found, values = find(key, 'hash'), {...}
  for place = 1, #values do
    values[place] = found and found.values[values[place]] or false
  end
  return values
end

function commands.HGETALL(key)
  local found, pairs_of = find(key, 'hash'), {}
  for place = 1, found and found.size or 0 do
    local name = found.order[place]
    pairs_of[2 * place - 1], pairs_of[2 * place] = name, found.values[name]
  end
  return pairs_of
end

function commands.HSET(key, ...)
  local object, given, added = find(key, 'hash') or put(key, new_bag('hash')), {...}, 0
  for place = 1, #given, 2 do
    if bag_put(object, text_of(given[place]), text_of(given[place + 1])) then
      added = added + 1
    end
  end
  return added
end

function commands.HDEL(key, ...)
  local found, gone = find(key, 'hash'), 0
  for _, name in ipairs(found and {...} or {}) do
    gone = gone + bag_drop(key, found, name)
  end
  return gone
end

function commands.HINCRBY(key, name, by)
  local object = find(key, 'hash')
  local known = object and object.values[name]
  if known and not known:find('^-?%d+$') then
    fail('ERR hash value is not an integer')
  end
  local number = (known and tonumber(known) or 0) + integer(by)
  bag_put(object or put(key, new_bag('hash')), name, text_of(number))
  return number
end

-- Sets

function commands.SADD(key, ...)
  local object, added = find(key, 'set') or put(key, new_bag('set')), 0
  for _, member in ipairs({...}) do
    if bag_put(object, text_of(member), true) then
      added = added + 1
    end
  end
  return added
end

function commands.SREM(key, ...)
  local found, gone = find(key, 'set'), 0
  for _, member in ipairs(found and {...} or {}) do
    gone = gone + bag_drop(key, found, text_of(member))
  end
  return gone
end

function commands.SMEMBERS(key)
  local found = find(key, 'set')
  return found and {unpack(found.order, 1, found.size)} or {}
end

-- Sorted sets: `order` has the members by score, then by name.

local function place_of(object, score, member)
  local low, high = 1, #object.order + 1
  while low < high do
    local middle = floor((low + high) / 2)
    local other = object.order[middle]
    local other_score = object.scores[other]
    if other_score < score or (other_score == score and other < member) then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end

function commands.ZADD(key, ...)
  local given, added = {...}, 0
  for place = 1, #given, 2 do
    given[place] = tonumber(given[place]) or fail('ERR value is not a valid float')
  end
  local object = find(key, 'zset') or put(key, {kind = 'zset', scores = {}, order = {}})
  for place = 1, #given, 2 do
    local score, member = given[place], text_of(given[place + 1])
    local old = object.scores[member]
    if old ~= score then
      if old then
        remove(object.order, place_of(object, old, member))
      else
        added = added + 1
      end
      insert(object.order, place_of(object, score, member), member)
      object.scores[member] = score
    end
  end
  return added
end

function commands.ZREM(key, ...)
  local found, gone = find(key, 'zset'), 0
  for _, member in ipairs(found and {...} or {}) do
    local score = found.scores[member]
    if score then
      remove(found.order, place_of(found, score, member))
      found.scores[member] = nil
      gone = gone + 1
    end
  end
  if gone > 0 and #found.order == 0 then
    keys[key] = nil
  end
  return gone
end

function commands.ZCARD(key)
  local found = find(key, 'zset')
  return found and #found.order or 0
end

function commands.ZSCORE(key, member)
  local found = find(key, 'zset')
  local score = found and found.scores[member]
  return score and text_of(score) or false
end

-- Whole numbers from `start` to `stop` of `size`, both counted from 0, or from the end if they are negative.
local function span(start, stop, size)
  start, stop = integer(start), integer(stop)
  return math.max(start < 0 and size + start or start, 0) + 1, math.min(stop < 0 and size + stop or stop, size - 1) + 1
end

function commands.ZRANGE(key, start, stop, with_scores)
  local found, members = find(key, 'zset'), {}
  local first, last = span(start, stop, found and #found.order or 0)
  for place = first, last do
    local member = found.order[place]
    insert(members, member)
    if with_scores then
      insert(members, text_of(found.scores[member]))
    end
  end
  return members
end

local function bound(text)
  if type(text) == 'number' then
    return text, false
  end
  local open, number = text:match('^(%(?)(.*)$')
  number = (number == '-inf' and -math.huge) or ((number == '+inf' or number == 'inf') and math.huge) or tonumber(number)
  if not number then
    fail('ERR min or max is not a float')
  end
  return number, open == '('
end

function commands.ZRANGEBYSCORE(key, low, high)
  local least, above = bound(low)
  local most, below = bound(high)
  local found, members = find(key, 'zset'), {}
  for _, member in ipairs(found and found.order or {}) do
    local score = found.scores[member]
    if score > most or (below and score == most) then
      break
    end
    if score > least or (not above and score == least) then
      insert(members, member)
    end
  end
  return members
end

-- Lists

function commands.RPUSH(key, ...)
  local object = find(key, 'list') or put(key, {kind = 'list', items = {}})
  for _, item in ipairs({...}) do
    insert(object.items, text_of(item))
  end
  return #object.items
end

function commands.LRANGE(key, start, stop)
  local found, items = find(key, 'list'), {}
  local first, last = span(start, stop, found and #found.items or 0)
  for place = first, last do
    insert(items, found.items[place])
  end
  return items
end

-- Streams: a queue of entries; a group's `pending` says who holds what has not been acknowledged.

local NO_STREAM = 'ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the '
  .. 'MKSTREAM option to create an empty stream automatically.'

local function new_stream()
  return {kind = 'stream', entries = new_queue(), ms = 0, sequence = 0, id = '0-0', groups = {}}
end

local function length_of(stream)
  return stream.entries.last - stream.entries.first + 1
end

local function read_id(text, default)
  text = tostring(text)
  local ms, sequence = text:match('^(%d+)-(%d+)$')
  ms = ms or text:match('^%d+$')
  if not ms then
    fail('ERR Invalid stream ID specified as stream command argument')
  end
  return tonumber(ms), sequence and tonumber(sequence) or default
end

-- The place of the first entry at an id or later.
local function place_in(stream, ms, sequence)
  local entries = stream.entries
  local low, high = entries.first, entries.last + 1
  while low < high do
    local middle = floor((low + high) / 2)
    local entry = entries.items[middle]
    if entry.ms < ms or (entry.ms == ms and entry.sequence < sequence) then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end

function commands.XADD(key, ...)
  local given, place, most, step = {...}, 1, nil, 1
  if given[1] == 'MAXLEN' then
    if given[2] == '~' then
      place, step = 2, 100 -- a whole node of 100 entries goes at once
    end
    most, place = integer(given[place + 1]), place + 2
  end
  if given[place] ~= '*' then
    fail('ERR only * is known as an ID here')
  end
  local stream = find(key, 'stream') or put(key, new_stream())
  if now_ms > stream.ms then
    stream.ms, stream.sequence = now_ms, 0
  else
    stream.sequence = stream.sequence + 1
  end
  stream.id = text_of(stream.ms) .. '-' .. text_of(stream.sequence)
  local fields = {}
  for number = place + 1, #given do
    insert(fields, text_of(given[number]))
  end
  push(stream.entries, {ms = stream.ms, sequence = stream.sequence, id = stream.id, fields = fields})
  while most and length_of(stream) >= most + step do
    for _ = 1, step do
      drop_first(stream.entries)
    end
  end
  if watched[key] then
    tell('stream', key, '')
  end
  return stream.id
end

function commands.XLEN(key)
  local found = find(key, 'stream')
  return found and length_of(found) or 0
end

function commands.XDEL(key, ...)
  local stream, gone = find(key, 'stream'), 0
  for _, id in ipairs(stream and {...} or {}) do
    local ms, sequence = read_id(id, 0)
    local place, entries = place_in(stream, ms, sequence), stream.entries
    local entry = entries.items[place]
    if entry and entry.ms == ms and entry.sequence == sequence then
      for number = place, entries.first + 1, -1 do -- most are near the first
        entries.items[number] = entries.items[number - 1]
      end
      drop_first(entries)
      gone = gone + 1
    end
  end
  return gone
end

local function entries_from(stream, place, last, most)
  local found = {}
  for number = place, math.min(last, place + most - 1) do
    local entry = stream.entries.items[number]
    insert(found, {entry.id, entry.fields})
  end
  return found
end

function commands.XRANGE(key, start, stop, _, most)
  local stream = find(key, 'stream')
  if not stream then
    return {}
  end
  local open, from = start:match('^(%(?)(.*)$')
  local first, last = stream.entries.first, stream.entries.last
  if from ~= '-' then
    local ms, sequence = read_id(from, 0)
    first = place_in(stream, ms, sequence + (open == '(' and 1 or 0))
  end
  if stop ~= '+' then
    local ms, sequence = read_id(stop, math.huge)
    last = place_in(stream, ms, sequence + 1) - 1
  end
  return entries_from(stream, first, last, most and integer(most) or math.huge)
end

local function options(given, place)
  local found = {}
  while given[place] and given[place]:upper() ~= 'STREAMS' do
    found[given[place]:upper()] = given[place + 1]
    place = place + 2
  end
  return found, place + 1
end

-- What is there now: who calls it waits for more (BLOCK).
function commands.XREAD(...)
  local given, found = {...}, {}
  local chosen, place = options(given, 1)
  local count = (#given - place + 1) / 2
  for number = place, place + count - 1 do
    local ms, sequence = read_id(given[number + count], 0)
    local stream = find(given[number], 'stream')
    if stream then
      local first = place_in(stream, ms, sequence + 1)
      if first <= stream.entries.last then
        local most = chosen.COUNT and integer(chosen.COUNT) or math.huge
        insert(found, {given[number], entries_from(stream, first, stream.entries.last, most)})
      end
    end
  end
  return #found > 0 and found or false
end

function commands.XGROUP(action, key, name, value, make)
  local stream = find(key, 'stream')
  if not stream then
    if not make then
      fail(NO_STREAM)
    end
    stream = put(key, new_stream())
  end
  local group = stream.groups[name]
  if action == 'CREATE' then
    if group then
      fail('BUSYGROUP Consumer Group name already exists')
    end
    local ms, sequence = read_id(value, 0)
    stream.groups[name] = {ms = ms, sequence = sequence, pending = {}, held = {}}
    return {ok = 'OK'}
  end
  if not group then
    fail("NOGROUP No such consumer group '" .. name .. "' for key name '" .. key .. "'")
  end
  local held = group.held[value] or 0
  for id, consumer in pairs(held > 0 and group.pending or {}) do
    if consumer == value then
      group.pending[id] = nil
    end
  end
  group.held[value] = nil
  return held
end

local function hold(group, id, consumer)
  local before = group.pending[id]
  if before then
    group.held[before] = group.held[before] - 1
  end
  group.pending[id] = consumer
  if consumer then
    group.held[consumer] = (group.held[consumer] or 0) + 1
  end
end

function commands.XREADGROUP(_, name, consumer, ...)
  local given, found = {...}, {}
  local chosen, place = options(given, 1)
  local key, id = given[place], given[place + 1]
  local stream = find(key, 'stream')
  local group = stream and stream.groups[name]
  if not group then
    fail("NOGROUP No such key '" .. key .. "' or consumer group '" .. name .. "' in XREADGROUP with GROUP option")
  end
  if id ~= '>' then
    fail('ERR only > is known as an ID here')
  end
  group.held[consumer] = group.held[consumer] or 0
  local first = place_in(stream, group.ms, group.sequence + 1)
  local most = chosen.COUNT and integer(chosen.COUNT) or math.huge
  for number = first, math.min(stream.entries.last, first + most - 1) do
    local entry = stream.entries.items[number]
    group.ms, group.sequence = entry.ms, entry.sequence
    hold(group, entry.id, consumer)
    insert(found, {entry.id, entry.fields})
  end
  return #found > 0 and {{key, found}} or false
end

function commands.XACK(key, name, ...)
  local stream, gone = find(key, 'stream'), 0
  local group = stream and stream.groups[name]
  for _, id in ipairs(group and {...} or {}) do
    if group.pending[id] then
      hold(group, id, nil)
      gone = gone + 1
    end
  end
  return gone
end

-- With JUSTID only, and only without a least time of idleness.
function commands.XCLAIM(key, name, consumer, _, id, just_id)
  local stream = find(key, 'stream')
  local group = stream and stream.groups[name]
  if not group then
    fail("NOGROUP No such key '" .. key .. "' or consumer group '" .. name .. "'")
  end
  if just_id ~= 'JUSTID' then
    fail('ERR only JUSTID is known here')
  end
  local ms, sequence = read_id(id, 0)
  group.held[consumer] = group.held[consumer] or 0
  if not group.pending[id] then
    return {}
  end
  local entry = stream.entries.items[place_in(stream, ms, sequence)]
  if not entry or entry.id ~= id then -- somebody has deleted it
    hold(group, id, nil)
    return {}
  end
  hold(group, id, consumer)
  return {id}
end

-- Number, least and greatest id, and number of each consumer.
function commands.XPENDING(key, name)
  local stream = find(key, 'stream')
  local group = stream and stream.groups[name]
  if not group then
    fail("NOGROUP No such key '" .. key .. "' or consumer group '" .. name .. "'")
  end
  local ids, consumers = {}, {}
  for id in pairs(group.pending) do
    local ms, sequence = read_id(id, 0)
    insert(ids, {ms, sequence, id})
  end
  if #ids == 0 then
    return {0, false, false, false}
  end
  table.sort(ids, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
  for consumer, held in pairs(group.held) do
    if held > 0 then
      insert(consumers, {consumer, text_of(held)})
    end
  end
  table.sort(consumers, function(a, b) return a[1] < b[1] end)
  return {#ids, ids[1][3], ids[#ids][3], consumers}
end

function commands.XINFO(_, key)
  local stream = find(key, 'stream')
  if not stream then
    fail('ERR no such key')
  end
  return {'length', length_of(stream), 'last-generated-id', stream.id}
end

function commands.PUBLISH(channel, message)
  local heard = listeners[channel] or 0
  if heard > 0 then
    tell('message', channel, message)
  end
  return heard
end

-- Scripts

local function set_of(names)
  local found = {}
  for name in names:gmatch('%u+') do
    found[name] = true
  end
  return found
end

local USES_MEMORY = set_of('SET INCR HSET HINCRBY SADD ZADD RPUSH XADD XGROUP RESTORE')
local WRITES = set_of('SET INCR HSET HINCRBY SADD ZADD RPUSH XADD XGROUP RESTORE DEL PEXPIRE HDEL SREM ZREM XDEL XACK '
  .. 'XCLAIM XREADGROUP')

local function call(name, ...)
  local command = commands[name] or commands[name:upper()] or fail("ERR unknown command '" .. name .. "'")
  if WRITES[name] then
    if refusal and not changed and (every_write or USES_MEMORY[name]) then
      fail(refusal)
    end
    changed = true
  end
  return command(...)
end

local function caught(ok, ...)
  if ok then
    return ...
  end
  local failure = ...
  return type(failure) == 'table' and failure or {err = 'ERR ' .. tostring(failure)}
end

local function only_known(_, name)
  error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
end

local function no_globals(_, name)
  error('Attempt to modify a readonly table: ' .. tostring(name), 2)
end

local sandbox = setmetatable({
  redis = {
    call = call,
    pcall = function(...)
      return caught(pcall(call, ...))
    end,
    sha1hex = host.sha1,
    error_reply = function(text)
      return {err = text:find('^%u+ ') and text or 'ERR ' .. text}
    end,
    status_reply = function(text)
      return {ok = text}
    end,
  },
  cjson = {
    -- Decoded once: what a script writes into its copy stays there.
    decode = function(text)
      local found = decoded[text]
      if not found then
        found = {__index = host.decode(text)}
        decoded[text] = found
      end
      return setmetatable({}, found)
    end,
  },
  KEYS = false, ARGV = false,
  math = math, string = string, table = table, ipairs = ipairs, pairs = pairs, next = next, select = select,
  tonumber = tonumber, tostring = tostring, type = type, unpack = unpack, error = error, pcall = pcall, assert = assert,
}, {__index = only_known, __newindex = no_globals})

function commands.SCRIPT(_, source)
  local sha = host.sha1(source)
  if not scripts[sha] then
    local script, why = loadstring(source, '@user_script')
    if not script then
      fail('ERR Error compiling script: ' .. why)
    end
    scripts[sha] = setfenv(script, sandbox)
  end
  return sha
end

function commands.EVALSHA(sha, key_count, ...)
  local script = scripts[sha] or fail('NOSCRIPT No matching script. Please use EVAL.')
  key_count = tonumber(key_count)
  if key_count == 1 then
    sandbox.KEYS, sandbox.ARGV = {(...)}, {select(2, ...)}
  else
    sandbox.KEYS, sandbox.ARGV = {unpack({...}, 1, key_count)}, {select(key_count + 1, ...)}
  end
  return script()
end

-- What Python calls

local function flat(value, out, size)
  local kind = type(value)
  if kind == 'string' then
    out[size + 1] = value
  elseif kind == 'number' then
    out[size + 1] = value < 0 and math.ceil(value) or floor(value)
  elseif kind ~= 'table' then
    out[size + 1] = value and 1 or false
  elseif value.ok or value.err then
    out[size + 1] = value.ok or value.err
  else
    local count = 0
    while value[count + 1] ~= nil do
      count = count + 1
    end
    out[size + 1], out[size + 2] = true, count
    size = size + 2
    for place = 1, count do
      size = flat(value[place], out, size)
    end
    return size
  end
  return size + 1
end

local function expire_some()
  for _ = 1, 4 do
    local due = store.due.items[store.due.first]
    if not due or due[2] > now_ms then
      return
    end
    drop_first(store.due)
    find_any(due[1])
  end
end

-- Returns how many parts of events there are, and the reply: an error's text behind 'error', an array flattened into a table (true
-- and its size before its items), which is in one table behind false if it is long; another reply alone.
local function answer(value)
  if type(value) ~= 'table' then
    if type(value) == 'number' then
      return #events, value < 0 and math.ceil(value) or floor(value)
    end
    return #events, value == true and 1 or value or nil
  elseif value.err then
    return #events, 'error', value.err
  elseif value.ok then
    return #events, value.ok
  end
  local out = {}
  local size = flat(value, out, 0)
  if size > 1000 then
    return #events, false, out, size
  end
  return #events, unpack(out, 1, size)
end

local server = {}

function server.execute(time_us, ...)
  now_us, now_ms, changed = time_us, floor(time_us / 1000), false
  expire_some()
  return answer(caught(pcall(call, ...)))
end

function server.has_changed()
  return changed
end

function server.take_events()
  local taken = events
  events = {}
  return unpack(taken)
end

function server.watch(key)
  watched[key] = true
end

function server.listen(channel, number)
  listeners[channel] = number
end

function server.limit(bytes, why, all)
  memory_bytes, refusal, every_write = bytes, why or nil, all
end

-- A restarted server has its data, but no scripts and no connections.
function server.start()
  events, watched, listeners, scripts = {}, {}, {}, {}
end

function server.new_store()
  return {keys = {}, due = new_queue()}
end

function server.use(other)
  store, keys = other, other.keys
end

function server.copy(value)
  if type(value) ~= 'table' then
    return value
  end
  local copied = {}
  for name, part in pairs(value) do
    copied[name] = server.copy(part)
  end
  return copied
end

server.use(server.new_store())
return server
