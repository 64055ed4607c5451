-- ARGV: node, session. Returns 'ok', 'unknown' or 'other'.
local found = check(ARGV[2], ARGV[3])
if found == 'ok' then
  forget(ARGV[2], now_ms())
end
return found
