-- ARGV: node, '1' or '0'. Returns 'ok' or 'unknown'.
if redis.call('EXISTS', key('node', ARGV[2])) == 0 then
  return 'unknown'
end
redis.call('HSET', key('node', ARGV[2]), 'draining', ARGV[3])
note_change(ARGV[2], now_ms())
return 'ok'
